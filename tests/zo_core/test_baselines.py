"""First-order and training-free rivals against torch and against autograd; MeZO as published."""

from __future__ import annotations

import sys
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bench import failures
from zo_core import (
    Closure,
    NonFiniteLoss,
    Params,
    Term,
    derive_seed,
    directions,
    first_order,
    methods,
)
from zo_core.base import Distribution, Unsupported, no_span
from zo_core.estimators.two_point import TwoPoint
from zo_core.methods import ft_adamw_8bit
from zo_core.methods.forward_gradient import directional
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import Settings, ZerothOrder


class Net(nn.Module):
    """A small network with matrices, biases, a norm and tied weights; its loss is a mean."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embed = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11)
        for p in self.parameters():
            p.data = 0.5 * torch.randn(p.shape, generator=generator)
        self.head.weight = self.embed.weight
        self.to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:  # (B,) -> ()
        hidden = self.norm(torch.tanh(self.inner(self.embed(tokens))))
        logits = self.head(hidden).to(torch.promote_types(hidden.dtype, torch.float32))
        return nn.functional.cross_entropy(logits, (tokens + 1) % 11)


TOKENS = torch.arange(12) * 7 % 11


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().reshape(-1) for p in module.parameters()])


# First order against torch's plain loops ---------------------------------------------------------

REFERENCES = {
    "ft_sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, foreach=False),
    "ft_sgd_momentum": lambda groups: torch.optim.SGD(
        groups, lr=0.05, momentum=0.9, foreach=False
    ),
    "ft_adamw": lambda groups: torch.optim.AdamW(groups, lr=0.05, foreach=False),
    "linear_probe": lambda groups: torch.optim.AdamW(groups, lr=0.05, foreach=False),
}


@pytest.mark.parametrize("group", ["matrices", "all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_steps_are_those_of_torchs_plain_loop(name, dtype, group):
    ours, theirs = Net(dtype), Net(dtype)
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    reference = REFERENCES[name](
        [
            {"params": matrices, "weight_decay": 0.3},
            {"params": vectors, "weight_decay": 0.3 if group == "all" else 0.0},
        ]
    )
    method, params = (
        methods.build(name, weight_decay=0.3, decay_group=group),
        Params.of(ours),
    )
    state = method.init(params)
    for step in range(6):
        state, info = method.step_(
            params, Closure(lambda: ours(TOKENS)), state, seed=step, lr=0.05
        )
        reference.zero_grad()
        loss = theirs(TOKENS)
        loss.backward()
        reference.step()
        assert info.losses[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.allclose(
        flat(ours), flat(theirs), rtol=0, atol=1e-12 if dtype.itemsize == 8 else 2e-6
    )


@pytest.mark.parametrize("name", ["ft_sgd", "ft_sgd_momentum", "ft_adamw", "linear_probe"])
def test_only_matrices_decay_unless_all_are_asked_for(name):
    for group, of_vector in (("matrices", 1.0), ("all", 0.9)):
        matrix, vector = torch.ones(2, 2, requires_grad=True), torch.ones(3, requires_grad=True)
        params = Params([("norm.weight", vector), ("bias", matrix)])  # names say nothing
        method = methods.build(name, weight_decay=1.0, decay_group=group)
        loss = Closure(lambda m=matrix, v=vector: 0 * (m.sum() + v.sum()))
        method.step_(params, loss, method.init(params), seed=0, lr=0.1)
        assert torch.allclose(matrix, torch.tensor(0.9))
        assert torch.allclose(vector, torch.tensor(of_vector))


def test_bad_decays_and_betas_are_refused_when_the_method_is_built():
    with pytest.raises(ValueError, match="Did you mean 'matrices'"):
        methods.build("ft_sgd", decay_group="matrix")
    with pytest.raises(ValueError, match="weight_decay must be 0 or more"):
        methods.build("ft_adamw", weight_decay=-0.1)
    for name, options in (("ft_adamw", {"beta2": 1.0}), ("ft_sgd_momentum", {"momentum": -0.1})):
        with pytest.raises(ValueError, match="betas"):
            methods.build(name, **options)


@pytest.mark.parametrize("name", ["ft_adamw", "linear_probe"])
def test_adamw_refuses_float16_unless_its_second_moment_can_be_lost(name):
    params = Params([("w", torch.zeros(3, dtype=torch.float16, requires_grad=True))])
    with pytest.raises(Unsupported, match=r"bfloat16.*ft_adamw_8bit.*adam_eps >= 5.5e-03"):
        methods.build(name).init(params)
    assert methods.build(name, adam_eps=6e-3).init(params) is not None
    assert methods.build(name, beta2=0.9, adam_eps=6e-4).init(params) is not None


@pytest.mark.parametrize("adam_eps", [6e-8, 5.5e-3])
def test_the_named_adam_eps_is_the_one_that_keeps_float16_steps_below_lr(adam_eps):
    largest = 0.0
    for g in (1e-4, 1e-3, 4e-3, 6e-3, 2e-2):
        w = torch.zeros(2, dtype=torch.float16, requires_grad=True)
        adamw = torch.optim.AdamW([w], lr=1e-2, eps=adam_eps, weight_decay=0.0, fused=True)
        for _ in range(50):
            with torch.no_grad():
                w.zero_()
            w.grad = torch.full_like(w, g)
            adamw.step()
            largest = max(largest, float(w.detach().abs().max()))
    assert (largest <= 1e-2) == (adam_eps == 5.5e-3)


# Micro-batches -----------------------------------------------------------------------------------


def parts(net: Net, sizes=(5, 4, 2, 1)):
    split = torch.split(TOKENS, sizes)
    return Closure([(float(len(t)), lambda t=t: net(t)) for t in split])


def test_the_loss_of_parts_is_their_mean_weighted_by_size():
    net = Net().requires_grad_(False)
    assert float(parts(net)()) == pytest.approx(float(net(TOKENS)), rel=1e-14)
    unweighted = Closure([(1.0, part) for _, part in parts(net).parts()])
    assert abs(float(unweighted()) - float(net(TOKENS))) > 1e-3


@pytest.mark.parametrize("name", ["mezo", "forward_gradient", *REFERENCES])
def test_parts_of_a_batch_give_the_step_of_the_whole(name):
    ends = []
    for in_parts in (False, True):
        net = Net()
        method, params = methods.build(name), Params.of(net)
        objective = parts(net) if in_parts else Closure(lambda net=net: net(TOKENS))
        state = method.init(params)
        for step in range(3):
            state, info = method.step_(params, objective, state, seed=step, lr=0.05)
            assert info.queries == method.cost(params).queries
        ends.append((flat(net), info))
    (whole, one), (split, other) = ends
    assert torch.allclose(whole, split, rtol=0, atol=1e-6 if one.estimate else 1e-12)
    assert not torch.allclose(whole, flat(Net()), rtol=0, atol=1e-3)
    if one.estimate:
        (a,), (b,) = one.estimate.terms, other.estimate.terms
        assert a.seed == b.seed and a.coefficient == pytest.approx(b.coefficient, rel=1e-6)


@pytest.mark.parametrize("name", ["mezo", "ft_sgd", "forward_gradient"])
def test_one_part_is_alive_at_a_time(name, live_bytes):
    """1024 rows through 40 layers of width 100: 16 MB of activations, 4 MB for a quarter."""
    torch.manual_seed(0)
    net = nn.Sequential(*[m for _ in range(40) for m in (nn.Linear(100, 100), nn.Tanh())])
    rows, graphs = torch.randn(1024, 100), []

    def loss(x):
        assert all(graph() is None for graph in graphs), "an earlier part is still there"
        value = net(x).square().mean()
        graphs.append(weakref.ref(value))
        return value

    peaks = []
    for pieces in (1, 4):
        graphs.clear()
        objective = Closure([(1.0, lambda x=x: loss(x)) for x in rows.split(1024 // pieces)])
        method, params = methods.build(name), Params.of(net)
        state = method.init(params)
        with live_bytes() as counter:
            method.step_(params, objective, state, seed=0, lr=0.0)
        peaks.append(counter.peak)
        assert len(graphs) == pieces * method.cost(params).queries
    if name == "ft_sgd":  # and 1.6 MB of gradients
        assert peaks[0] > 16e6 and peaks[1] < 7e6


def test_gradients_die_when_a_later_part_is_not_finite():
    net = Net()
    before = flat(net)
    good = (1.0, lambda: net(TOKENS))
    objective = Closure([good, (1.0, lambda: net(TOKENS) * float("nan"))])
    params = Params.of(net)
    method = methods.build("ft_sgd_momentum")
    with pytest.raises(NonFiniteLoss):
        method.step_(params, objective, method.init(params), seed=0, lr=0.1)
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(flat(net), before)


def test_losses_are_looked_at_after_the_last_backward_pass(monkeypatch):
    """A look makes the host wait; between two passes, the device would stand still."""
    net, seen, real = Net(), [], first_order.finite
    monkeypatch.setattr(first_order, "finite", lambda loss: seen.append("look") or real(loss))

    @contextmanager
    def span(phase):
        yield seen.append(phase)

    method, params = methods.build("ft_sgd"), Params.of(net)
    _, info = method.step_(params, parts(net), method.init(params), seed=0, lr=0.0, span=span)
    assert seen == ["forward", "backward"] * 4 + ["look"] * 4 + ["update"]
    assert info.losses == pytest.approx([float(net(TOKENS).detach())], rel=1e-14)


def test_a_loss_that_is_not_one_number_is_refused_as_such():
    net = Net()
    method, params = methods.build("ft_sgd"), Params.of(net)
    objective = Closure(lambda: net(TOKENS).expand(3))
    with pytest.raises(ValueError, match=r"Expected a loss of shape \(\), got \(3,\)"):
        method.step_(params, objective, method.init(params), seed=0, lr=0.0)


# MeZO as published -------------------------------------------------------------------------------


@dataclass(frozen=True)
class TorchNoise(Distribution):
    """Normal numbers as the released MeZO draws them: reseed, then walk the tensors in order."""

    order: tuple[tuple[int, torch.Size, torch.dtype], ...]  # key, shape and dtype of every tensor

    @property
    def name(self):
        return "torch"

    def walk(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for key, shape, dtype in self.order:
            yield key, torch.randn(shape, generator=generator, dtype=dtype)

    def draw(self, piece, terms):
        stop = piece.first + piece.part.numel()
        drawn = [t.coefficient * dict(self.walk(t.seed))[piece.param.key] for t in terms]
        return sum(drawn).reshape(-1)[piece.first : stop].to(piece.wide)

    def add_(self, params, terms):
        with torch.no_grad():
            for term in terms:
                noise = dict(self.walk(term.seed))
                for p in params:
                    p.tensor.add_(term.coefficient * noise[p.key])


def published(net: Net, seeds, lr: float, eps: float, wd: float) -> None:
    """Algorithm 1 of arXiv 2305.17333 in plain torch, as the released trainer walks it."""
    tensors = list(net.parameters())

    def perturb(seed: int, by: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in tensors:
            z = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.data = p.data + by * z * eps

    for seed in seeds:
        with torch.no_grad():
            perturb(seed, 1)
            plus = net(TOKENS)
            perturb(seed, -2)
            minus = net(TOKENS)
            projected_grad = ((plus - minus) / (2 * eps)).item()
            perturb(seed, 1)
            generator = torch.Generator().manual_seed(seed)
            for p in tensors:
                z = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                p.data = p.data - lr * (projected_grad * z + wd * p.data)


@pytest.mark.parametrize("wd", [0.0, 0.1])
@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float64, 1e-7), (torch.float32, 3e-4)], ids=["f64", "f32"]
)
def test_mezo_follows_the_published_loop_step_by_step(dtype, within, wd):
    lr, eps = 0.05, 1e-3
    ours, theirs = Net(dtype), Net(dtype)
    params = Params.of(ours)
    assert len(params) == len(list(theirs.parameters()))
    noise = TorchNoise(tuple((p.key, p.tensor.shape, dtype) for p in params))
    settings = Settings(weight_decay=wd, decay_group="all")
    mezo = ZerothOrder(TwoPoint(eps, noise), Sgd(), settings)
    state = mezo.init(params)
    for step in range(20):
        seed = derive_seed(8, step)
        objective = Closure(lambda: ours(TOKENS))
        state, _ = mezo.step_(params, objective, state, seed=seed, lr=lr)
        published(theirs, [seed], lr, eps, wd)
        assert torch.allclose(flat(ours), flat(theirs), rtol=0, atol=within)
    assert (flat(ours) - flat(Net(dtype))).abs().max() > 0.1


# Forward gradient --------------------------------------------------------------------------------


def along_autograd(params: Params, loss: Tensor, distribution, seed: int) -> float:
    """Return grad . v by backward mode, for the direction of ``seed``."""
    grads = torch.autograd.grad(loss, params.tensors, allow_unused=True)
    v = Params((p.name, torch.zeros_like(p.tensor)) for p in params)
    distribution.add_(v, [Term(seed, 1.0)])
    pairs = zip(grads, v, strict=True)
    return sum(float((g * u.tensor).sum().detach()) for g, u in pairs if g is not None)


@pytest.mark.parametrize("law", directions.names())
def test_the_directional_derivative_is_autograds(law):
    net, distribution = Net(), directions.build(law)
    params = Params.of(net)
    assert len(params) == 6, "the tied embedding once"
    loss, slope = directional(params, Closure(lambda: net(TOKENS)), distribution, 5, no_span)
    expected = along_autograd(params, net(TOKENS), distribution, 5)
    assert loss == float(net(TOKENS).detach())
    assert slope == pytest.approx(expected, rel=1e-10)


def language_model(family: str) -> nn.Module:
    import transformers as hf

    small = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
    torch.manual_seed(1)
    if family == "opt":
        config = hf.OPTConfig(
            **small, ffn_dim=64, num_attention_heads=2, word_embed_proj_dim=32, dropout=0.1
        )
        return hf.OPTForCausalLM(config)
    if family == "llama":
        config = hf.LlamaConfig(
            **small, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2
        )
        return hf.LlamaForCausalLM(config)
    return hf.RobertaForMaskedLM(
        hf.RobertaConfig(**small, intermediate_size=64, num_attention_heads=2)
    )


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["opt", "llama", "roberta"])
def test_the_directional_derivative_of_a_language_model_is_autograds(family, padded):
    model = language_model(family).double().eval()
    ids = torch.arange(2, 18).reshape(2, 8) * 5 % 61 + 3
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    params, normal = Params.of(model), directions.build("gaussian")
    before = [p.detach().clone() for p in model.parameters()]

    def loss():
        given = {"attention_mask": mask} if padded else {}
        logits = model(input_ids=ids, **given).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())

    with torch.no_grad():
        assert not loss().requires_grad
    _, slope = directional(params, Closure(loss), normal, 2, no_span)
    expected = along_autograd(params, loss(), normal, 2)
    assert slope == pytest.approx(expected, rel=1e-5)  # a norm of theirs computes in float32
    assert abs(expected) > 1e-3
    assert all(torch.equal(b, p) for b, p in zip(before, model.parameters(), strict=True))


def test_the_mean_of_forward_gradients_is_the_gradient():
    net = Net()
    params, normal = Params.of(net), directions.build("gaussian")
    total = Params((p.name, torch.zeros_like(p.tensor)) for p in params)
    squares, draws = [torch.zeros_like(p.tensor) for p in params], 800
    for draw in range(draws):
        seed = derive_seed(1, draw)
        _, slope = directional(params, Closure(lambda: net(TOKENS)), normal, seed, no_span)
        one = Params((p.name, torch.zeros_like(p.tensor)) for p in params)
        normal.add_(one, [Term(seed, slope)])
        for t, s, o in zip(total, squares, one, strict=True):
            t.tensor.add_(o.tensor)
            s.addcmul_(o.tensor, o.tensor)
    grads = torch.autograd.grad(net(TOKENS), params.tensors)
    for t, s, g in zip(total, squares, grads, strict=True):
        error = ((s / draws) ** 0.5 / draws**0.5).clamp_min(1e-12)
        assert ((t.tensor / draws - g).abs() / error).max() < 4.5


def test_forward_gradient_decays_and_clips_as_it_is_told():
    ends = {}
    for name, options in {
        "plain": {},
        "decayed": {"weight_decay": 0.5},
        "all decayed": {"weight_decay": 0.5, "decay_group": "all"},
        "clipped": {"clip": 1e-3},
    }.items():
        net = Net()
        method, params = methods.build("forward_gradient", **options), Params.of(net)
        objective = Closure(lambda net=net: net(TOKENS))
        _, info = method.step_(params, objective, None, seed=4, lr=0.1)
        ends[name] = (net, info.estimate.terms[0].coefficient)
    start, (plain, c) = Net(), ends["plain"]
    for name, vectors_too in (("decayed", False), ("all decayed", True)):
        net, same = ends[name]
        assert same == c
        for old, new, less in zip(*(n.parameters() for n in (start, plain, net)), strict=True):
            loses = 0.1 * 0.5 * old if old.dim() >= 2 or vectors_too else 0.0
            assert torch.allclose(less, new - loses, rtol=0, atol=1e-12)
    net, clipped = ends["clipped"]
    assert abs(clipped) == pytest.approx(1e-3, rel=1e-6) and abs(c) > 0.01
    moved, far = flat(net) - flat(start), flat(plain) - flat(start)
    assert torch.allclose(moved, far * (clipped / c), rtol=0, atol=1e-9)


def test_forward_gradient_leaves_no_dual_number_and_no_graph_behind():
    net = Net()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    seen = []

    def loss():
        seen.append(net(TOKENS))
        return seen[-1]

    method, params = methods.build("forward_gradient"), Params.of(net)
    method.step_(params, Closure(loss), None, seed=0, lr=0.0)
    assert seen[0].grad_fn is None
    with torch.autograd.forward_ad.dual_level():
        for name, p in net.named_parameters():
            assert torch.autograd.forward_ad.unpack_dual(p).tangent is None
            assert torch.equal(p, before[name]) and p.is_leaf and p.requires_grad


def test_forward_gradient_holds_its_direction_once(live_bytes):
    w = torch.zeros(2048, 2048)
    params = Params([("w", w)])
    method = methods.build("forward_gradient")
    with live_bytes() as counter:
        method.step_(params, Closure(lambda: w[0].sum()), None, seed=0, lr=0.1)
    declared = method.cost(params).scratch_bytes
    assert params.bytes <= counter.peak <= declared + (64 << 10) < 1.25 * params.bytes


class NoForward(torch.autograd.Function):
    """An operation with a backward derivative and no forward one."""

    @staticmethod
    def forward(ctx, x):
        return x.sum()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_forward_gradient_says_in_a_line_what_it_cannot_do():
    w = torch.ones(3)
    params, method = Params([("w", w)]), methods.build("forward_gradient")

    def step(objective):
        method.step_(params, objective, None, seed=0, lr=0.1)

    with pytest.raises(Unsupported, match="not differentiable"):
        step(Closure(lambda: w.sum(), differentiable=False))
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with pytest.raises(Unsupported, match="has none"):
        step(Closure(lambda: attention(*[w.expand(1, 1, 2, 3)] * 3)[0].sum()))
    with pytest.raises(Unsupported, match="has none"):
        step(Closure(lambda: NoForward.apply(w)))
    with pytest.raises(ValueError, match="depends on the trained tensors"):
        step(Closure(lambda: torch.ones(())))
    with pytest.raises(NonFiniteLoss, match="directional derivative"):
        step(Closure(lambda: (w - 1).abs().sqrt().sum()))
    assert torch.equal(w, torch.ones(3))


# 8-bit AdamW -------------------------------------------------------------------------------------


def test_states_in_eight_bits_are_what_bitsandbytes_keeps():
    pytest.importorskip("bitsandbytes")
    shapes = {"large": (100, 100), "edge": (4096,), "small": (4095,), "scalar": ()}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensors = {n: torch.ones(s, dtype=dtype, requires_grad=True) for n, s in shapes.items()}
        params = Params(tensors.items())
        method = methods.build("ft_adamw_8bit", weight_decay=0.1)
        state = method.init(params)
        loss = Closure(lambda t=tensors: sum(x.float().square().sum() for x in t.values()))
        state, _ = method.step_(params, loss, state, seed=0, lr=0.01)
        kept = {
            t.untyped_storage()._cdata: t.untyped_storage().nbytes()
            for one in state.state.values()
            for t in one.values()
            if isinstance(t, Tensor)
        }
        assert method.cost(params).state_bytes == sum(kept.values())
        assert all(p.grad is None for p in tensors.values())


def test_steps_of_small_tensors_in_eight_bits_are_adamws():
    pytest.importorskip("bitsandbytes")
    ours, theirs = Net(torch.float32), Net(torch.float32)
    for name, net in (("ft_adamw_8bit", ours), ("ft_adamw", theirs)):
        method, params = methods.build(name, weight_decay=0.3), Params.of(net)
        state = method.init(params)
        for step in range(5):
            objective = Closure(lambda net=net: net(TOKENS))
            state, _ = method.step_(params, objective, state, seed=step, lr=0.01)
    assert torch.allclose(flat(ours), flat(theirs), atol=1e-5)


def test_a_missing_library_or_kernel_is_a_result_and_not_a_failure(monkeypatch):
    method = methods.build("ft_adamw_8bit")
    weights = Params([("w", torch.zeros(5000, requires_grad=True))])
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(Unsupported, match=r"the package bitsandbytes.*'ft_adamw'") as refusal:
        method.init(weights)
    assert failures.status_of(refusal.value) == "unsupported"

    class Stepless(torch.optim.SGD):
        def __init__(self, groups, lr, betas, eps):
            super().__init__(groups, lr=lr)

        def step(self):
            raise NotImplementedError("no kernel\nand a long story")

    fake = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=Stepless))
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    with pytest.raises(Unsupported, match=r"can't run 8-bit AdamW on cpu.*\(no kernel\)"):
        method.init(weights)
    wide = Params([("w", torch.zeros(5000, dtype=torch.float64, requires_grad=True))])
    with pytest.raises(Unsupported, match="no kernel for float64"):
        method.init(wide)


def test_declared_state_in_eight_bits_is_two_bytes_and_a_bit():
    n = 1 << 20
    params = Params([("w", torch.zeros(n)), ("b", torch.zeros(10))])
    assert ft_adamw_8bit.state_bytes(params) == 2 * n + 2 * 4 * n // 256 + 2 * 4 * 10 + 2048


# Training-free, and the head alone ---------------------------------------------------------------


def test_in_context_learning_is_inference_under_another_name():
    assert methods.build("in_context_learning") == methods.build("zero_shot")
    assert methods.titles()["in_context_learning"] != methods.titles()["zero_shot"]


def test_a_linear_probe_keeps_no_activations_of_the_frozen_body(live_bytes):
    torch.manual_seed(0)
    body = nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(200, 200), nn.Tanh())])
    net, x = nn.Sequential(body, nn.Linear(200, 3)), torch.randn(500, 200)
    peaks = {}
    for name in ("zero_shot", "linear_probe", "ft_adamw"):
        body.requires_grad_(name == "ft_adamw")
        params, method = Params.of(net), methods.build(name)
        state = method.init(params)
        with live_bytes() as counter:
            method.step_(params, Closure(lambda: net(x).square().mean()), state, seed=0, lr=1e-3)
        peaks[name] = counter.peak
    features = 4 * 500 * 200
    head = 4 * (200 * 3 + 3)
    assert peaks["linear_probe"] <= peaks["zero_shot"] + features + 4 * head + 4 * 3 * 500
    assert peaks["ft_adamw"] > 20 * features
