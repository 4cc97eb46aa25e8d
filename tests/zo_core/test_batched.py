"""One forward pass for all points: the same losses as in turn, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zo_core import Closure, NonFiniteLoss, Params, directions, methods
from zo_core.base import Look, Term
from zo_core.perturbers.batched import Batched
from zo_core.perturbers.in_forward import InForward

POINTS = ((), (Term(1, 0.05),), (Term(2, 0.05), Term(3, -0.1)), (Term(1, -0.05),))
B, T, V = 3, 4, 11


class Layer(nn.Module):
    """Owns a tensor beside its children, is given keywords, and returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(6))
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor, *, mask: Tensor, scale: float) -> tuple[Tensor, dict]:
        mixed = torch.softmax(x @ x.transpose(1, 2) + mask, -1) @ self.inner(x)
        return x + scale * self.gate * mixed, {"norm": mixed.norm(dim=(1, 2)), "heads": None}


class Model(nn.Module):
    """Like a transformer: tied embedding, shared position ids, tokens laid flat."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, 6)
        self.places = nn.Embedding(T, 6)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, V, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.places(torch.arange(T)[None])
        mask = torch.full((T, T), -1e9).triu(1).expand(len(ids), T, T)
        for layer in self.layers:
            x, more = layer(x, mask=mask, scale=0.5)
            x = x * (1 + more["norm"].tanh())[:, None, None]
        return self.head(self.norm(x).flatten(0, 1)).view(len(ids), T, V)


def objective(module, forward=None):
    ids = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(3))

    def losses(copies: int) -> Tensor:
        logits = (forward or module)(ids.repeat(copies, 1))
        return logits.float().log_softmax(-1)[..., 2].view(copies, -1).mean(1)

    return Closure(lambda: losses(1)[0], tiled=losses)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def is_clean(module) -> bool:
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    return not hooks and not any("forward" in m.__dict__ for m in module.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_losses_are_those_of_the_points_in_turn(model, dtype):
    model.to(dtype)
    params, look = Params.of(model), Look(directions.build("rademacher"), POINTS)
    both = objective(model)
    before = [t.detach().clone() for t in params.tensors]
    in_turn = InForward().losses(params, both, look)
    at_once = Batched().losses(params, both, look)
    assert at_once == pytest.approx(in_turn, rel=1e-6, abs=1e-6)
    assert len({round(x, 4) for x in in_turn}) == len(POINTS)  # the points do differ
    assert all(map(torch.equal, before, params.tensors)) and is_clean(model)


@pytest.mark.parametrize("name", ["fzoo", "mezo", "hizoo", "lozo"])
def test_steps_are_those_of_the_points_in_turn(name):
    ends = []
    for restore in ("exact", "batched"):
        torch.manual_seed(0)
        module = Model()
        params, method = Params.of(module), methods.build(name, restore=restore, eps=0.01)
        state = method.init(params)
        for seed in range(3):
            state, info = method.step_(params, objective(module), state, seed=seed, lr=0.01)
        assert info.queries == method.cost(params).queries
        ends.append(torch.cat([t.detach().reshape(-1) for t in params.tensors]))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=2e-5)


def test_only_the_trained_tensors_count(model):
    model.requires_grad_(False)
    model.layers[1].inner.bias.requires_grad_(True)
    params, look = Params.of(model), Look(directions.build("gaussian"), POINTS)
    wanted = InForward().losses(params, objective(model), look)
    assert Batched().losses(params, objective(model), look) == pytest.approx(wanted, rel=1e-6)


def test_the_head_alone_may_be_called(model):
    def forward(ids):  # as the harness does with masked models
        hidden = model.embed(ids)
        return model.head(hidden)

    model.places = model.layers = model.norm = None
    params, look = Params.of(model), Look(directions.build("gaussian"), POINTS)
    wanted = InForward().losses(params, objective(model, forward), look)
    assert Batched().losses(params, objective(model, forward), look) == pytest.approx(wanted)


def test_hooks_of_others_may_call_modules_with_shared_inputs(model):
    def with_prompt(module, args):  # as prompt tuning does
        (ids,) = args
        words = module.embed(torch.tensor([[3, 5]])).expand(len(ids), -1, -1)
        kept.append(words.mean((1, 2)))

    kept = []
    model.register_forward_pre_hook(with_prompt)
    params, look = Params.of(model), Look(directions.build("gaussian"), POINTS)
    both = objective(model, lambda ids: model(ids) * (1 + kept.pop()[:, None, None]))
    wanted = InForward().losses(params, both, look)
    assert Batched().losses(params, both, look) == pytest.approx(wanted, rel=1e-6)


def test_a_forward_that_stood_in_for_the_modules_own_stands_there_again(model):
    calls = []
    own = model.norm.forward
    model.norm.__dict__["forward"] = stood_in = lambda x: calls.append(len(x)) or own(x)
    look = Look(directions.build("gaussian"), POINTS)
    Batched().losses(Params.of(model), objective(model), look)
    assert calls == [B] * len(POINTS) and model.norm.forward is stood_in


def test_nothing_is_left_behind_when_a_module_raises(model):
    params = Params.of(model)
    before = [t.detach().clone() for t in params.tensors]
    model.layers[1].inner.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Batched().losses(params, objective(model), Look(directions.build("gaussian"), POINTS))
    del model.layers[1].inner.__dict__["forward"]
    assert all(map(torch.equal, before, params.tensors)) and is_clean(model)


def test_a_loss_that_is_not_finite_is_raised(model):
    broken = Closure(lambda: torch.tensor(1.0), tiled=lambda n: model(zeros(n)).sum((1, 2)) / 0)
    with pytest.raises(NonFiniteLoss):
        Batched().losses(Params.of(model), broken, Look(directions.build("gaussian"), POINTS))


def zeros(n):
    return torch.zeros(n, T, dtype=torch.long)


def refused(module, call, message, points=POINTS):
    look = Look(directions.build("gaussian"), points)
    tiled = Closure(lambda: call(1)[0], tiled=call)
    with pytest.raises(ValueError, match=message):
        Batched().losses(Params.of(module), tiled, look)


class Wrapped(nn.Module):
    """Calls what it holds with whatever is asked."""

    def __init__(self, inner: nn.Module, given) -> None:
        super().__init__()
        self.inner, self.given = inner, given

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.given(x)).sum().expand(len(x))


def test_what_cannot_be_cut_is_refused(model):
    n = len(POINTS)
    rows = torch.ones(n * B, 5)

    def sums(module):
        return lambda copies: module(rows).view(copies, -1).mean(1)

    positions = Wrapped(nn.Embedding(20, 2), lambda x: torch.arange(12))
    refused(positions, sums(positions), "can't tell .* Embedding: expected 12 rows, or 1")
    table = Wrapped(nn.Linear(5, 2), lambda x: torch.ones(7, 5))
    refused(table, sums(table), "can't tell .* Linear")
    scalar = Wrapped(Block(), lambda x: None)
    refused(scalar, sums(scalar), "called without a batch")
    opaque = Wrapped(Block(), lambda x: object())
    refused(opaque, sums(opaque), "input object")
    linear = nn.Linear(5, 1)
    refused(linear, lambda copies: linear(torch.ones(7, 5))[:copies, 0], "got 7 rows")
    refused(linear, lambda copies: linear(rows)[:, 0], "that many losses")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, _: object) -> Tensor:
        return self.weight.sum()


def test_tensors_without_a_module_and_untiled_objectives_are_refused(model):
    look = Look(directions.build("gaussian"), POINTS)
    plain = Params([("w", torch.ones(3))])
    with pytest.raises(ValueError, match="belong to none"):
        Batched().losses(plain, Closure(lambda: torch.tensor(0.0)), look)
    with pytest.raises(ValueError, match=r"tiled=\.\.\."):
        Batched().losses(Params.of(model), Closure(lambda: model(zeros(1)).sum()), look)
    assert is_clean(model)


def test_a_tensor_that_its_module_does_not_use_is_refused(model):
    def around(ids):
        return nn.functional.linear(model.embed(ids), model.layers[0].inner.weight[:, :6])

    refused(model, lambda n: around(zeros(n)).mean((1, 2)), "not used in the forward pass")


def test_a_look_at_the_anchor_set_is_in_turn(model):
    whole = objective(model)
    anchored = Closure(whole, whole, tiled=lambda n: 1 / 0)
    look = Look(directions.build("gaussian"), POINTS, "anchor")
    params = Params.of(model)
    assert Batched().losses(params, anchored, look) == InForward().losses(params, anchored, look)


def test_saved_weights_are_those_of_one_module_at_a_time(live_bytes):
    module = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8))).requires_grad_(True)
    params, x = Params.of(module), torch.ones(2, 256)
    tiled = Closure(
        lambda: module(x).sum(), tiled=lambda n: module(x.repeat(n, 1)).view(n, -1).sum(1)
    )
    method = methods.build("fzoo", restore="batched")
    with live_bytes() as counter:
        method.step_(params, tiled, method.init(params), seed=1, lr=0.0)
    largest = 4 * (256 * 256 + 256)
    assert largest <= counter.peak <= method.cost(params).scratch_bytes + (128 << 10)
    assert counter.peak < 2 * largest


def transformer(kind):
    t = pytest.importorskip("transformers")
    size = {"vocab_size": V, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    if kind == "llama":
        config = t.LlamaConfig(
            hidden_size=16, intermediate_size=24, bos_token_id=0, eos_token_id=1, **size
        )
        return t.LlamaForCausalLM(config)
    if kind == "opt":
        config = t.OPTConfig(hidden_size=16, ffn_dim=24, word_embed_proj_dim=8, **size)
        return t.OPTForCausalLM(config)
    config = t.RobertaConfig(
        hidden_size=16, intermediate_size=24, max_position_embeddings=T + 2, **size
    )
    return t.RobertaForMaskedLM(config)


@pytest.mark.parametrize("kind", ["llama", "opt", "roberta"])
def test_losses_of_a_transformer_are_those_of_the_points_in_turn(kind):
    module = transformer(kind).eval()
    params, look = Params.of(module), Look(directions.build("rademacher"), POINTS)
    both = objective(module, lambda ids: module(input_ids=ids).logits)
    in_turn = InForward().losses(params, both, look)
    assert Batched().losses(params, both, look) == pytest.approx(in_turn, rel=1e-5, abs=1e-6)
    assert len({round(x, 5) for x in in_turn}) == len(POINTS)
