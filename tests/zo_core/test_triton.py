"""The GPU kernel: the reference's bits in triton's interpreter, and what compilers make of it.

The interpreter runs in a process of its own, as triton decides when it is imported; tensors are in
memory that both processes share. Compilers for GPUs come with triton, so no GPU is needed to read
what they write. What only a GPU can show is marked ``gpu``.
"""

from __future__ import annotations

import math
import os
import re
import struct
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from zo_core import Params, noise
from zo_core.base import Term
from zo_core.noise import gpu, reference

ROOT = Path(__file__).parents[2]
KEY = 0x7654_3210_FEDC_BA98  # both words as int32: one positive, one negative
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TERMS = {
    "one": [Term(2**63 + 5, 1e-3)],
    "three": [Term(2**63 + 5, 0.1), Term(7, -0.3), Term(-1, 2.7e-5)],
}
CUDA = torch.device("cuda")
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not installed (there are wheels for Linux)"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of every element; all NaNs are one."""
    width = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.where(~tensor.isnan(), torch.nan).cpu().view(width)


def weights(count: int, dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
    """Return small numbers of either sign and size, the middle one 0."""
    x = (torch.arange(count, device=device) - count // 2) / max(1, count)
    return (x**3 * 0.16).to(dtype)


@pytest.fixture(scope="module")
def interpreter():
    """Return what ``gpu.write`` is called through: a process that interprets triton."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        assert pool.submit(os.getenv, "TRITON_INTERPRET").result() == "1"
    with pool:
        yield lambda *args: pool.submit(gpu.write, *args).result()


def compare(write, source, name, terms, first=0, threshold=None, both=False, key=KEY):
    """Return what was written, new tensors, once it was found to be what the reference writes."""
    outs = [torch.full_like(source, 9.0) for _ in range(1 + both)]
    expected = [torch.empty_like(source) for _ in outs]
    write(source, outs, name, key, terms, first, threshold)
    reference.write(source, expected, name, key, terms, first, threshold)
    for out, right in zip(outs, expected, strict=True):
        assert torch.equal(bits(out), bits(right))
    return outs


# ---------------------------------------------------------------------------- in the interpreter


@needs_triton
@pytest.mark.parametrize("name", reference.LAWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms", TERMS)
def test_the_kernel_gives_the_bits_of_the_reference(name, dtype, terms, interpreter):
    source = weights(2501 if terms == "one" else 331, dtype)
    plus, minus = compare(interpreter, source, name, TERMS[terms], 77, 0.01, both=True)
    fixed = source.abs() > 0.01
    assert fixed.any() and torch.equal(plus[fixed], source[fixed])
    assert (plus != source)[~fixed].any() and (minus != plus)[~fixed].any()


@needs_triton
@pytest.mark.parametrize("name", reference.LAWS)
@pytest.mark.parametrize("first", [0, 2047, 2048, 32_700, 2**33 + 5, 2**40 + 77])
def test_a_stretch_may_begin_anywhere(name, first, interpreter):
    compare(interpreter, weights(173, torch.float32), name, TERMS["one"], first)
    compare(interpreter, weights(37, torch.float32), name, TERMS["three"], first)


@needs_triton
@pytest.mark.parametrize("count", [0, 1, 31, 33, 255, 257])
def test_a_tensor_may_end_anywhere_and_nothing_is_written_around_it(count, interpreter):
    room = torch.zeros(count + 400)
    inside = room[100 : 100 + count]
    interpreter(inside, (inside,), "gaussian", KEY, TERMS["one"], 50)
    z = reference.sample("gaussian", 2**63 + 5, KEY, count, first=50)
    assert torch.equal(inside, z * 1e-3)
    assert not room[:100].any() and not room[100 + count :].any()


@needs_triton
@pytest.mark.parametrize("both", [False, True], ids=["one out", "two outs"])
@pytest.mark.parametrize("threshold", [None, 0.01, 0.0])
def test_every_act_may_write_over_its_source(both, threshold, interpreter):
    for dtype in DTYPES:
        source = weights(101, dtype)
        assert source[50] == 0  # no larger than any threshold
        plus, *minus = compare(interpreter, source, "rademacher", TERMS["one"], 5, threshold, both)
        outs = [source, *(torch.empty_like(source) for _ in minus)]
        interpreter(source, outs, "rademacher", KEY, TERMS["one"], 5, threshold)
        assert all(map(torch.equal, outs, [plus, *minus]))


@needs_triton
@pytest.mark.parametrize("sign", [1, -1])
def test_the_outermost_elements_are_those_of_the_tail(sign, interpreter):
    """Of two streams with an element past 4.17 sigma among their first thousand."""
    seed, key, place = (45, 7, 599) if sign == 1 else (43, 7, 45)
    source = torch.zeros(640)
    (out,) = compare(interpreter, source, "gaussian", [Term(seed, 1.0)], key=key)
    assert out[place] * sign > 4.17
    three = [Term(2, 0.5), Term(seed, 1.0), Term(3, -0.25)]
    compare(interpreter, source[:100], "gaussian", three, place - 50, key=key)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_and_coefficients_of_every_kind_are_rounded_as_torch_does(dtype, interpreter):
    info = torch.finfo(dtype)
    kinds = [0.0, -0.0, math.inf, -math.inf, math.nan, info.max, -info.max, info.tiny]
    kinds += [info.smallest_normal / 4, 1.0, -1.0, 1 + info.eps]
    source = torch.tensor(kinds, dtype=dtype).repeat(12)
    (all_bits_set,) = struct.unpack("d", b"\xff" * 7 + b"\x7f")  # the NaN that NVIDIA's GPUs make
    usual = (1e-45, 1e-8, info.eps / 2, info.eps, 1.0, info.max, math.inf, -0.0)
    for coefficient in (*usual, all_bits_set):
        compare(interpreter, source, "rademacher", [Term(3, coefficient)], both=True)
        compare(interpreter, source, "gaussian", [Term(3, coefficient)], both=True)
    compare(interpreter, source, "rademacher", [], both=True)


# ------------------------------------------------------------------- what the compilers make of it

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
POINTERS = {"terms": "*i32", "quantiles": "*fp32"}
FUSED = {
    "ptx": r"\bfma\.|\b(?:mul|add|sub)\.(?!rn\.)[a-z.]*f32|\.ftz",
    "sass": r"\b[FH]FMA",
    "amdgcn": r"\bv_(?:pk_)?(?:fma|mac|mad|fmac)\w*_f(?:32|16)",
}
"""In assembly: a multiply-add rounded once, what may become one, and flushed subnormals."""


def compiled(name, element, target, both=True, small=True, single=True, **options):
    """Compile the kernel as ``gpu`` launches it, for a GPU that need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from zo_core.noise import triton_kernels

    fixed = gpu.constants(name, both, small, single)
    weight = dict.fromkeys(("source", "out", "other"), f"*{element}")
    signature = {
        p: (weight | POINTERS | dict.fromkeys(fixed, "constexpr")).get(p, "i32")
        for p in triton_kernels.write.arg_names
    }
    source = ASTSource(triton_kernels.write, signature=signature, constexprs=fixed)
    return triton.compile(
        source, target=GPUTarget(*TARGETS[target]), options=gpu.OPTIONS | options
    )


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Return ``compiled``, with nothing kept on disk."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return compiled


@needs_triton
@pytest.mark.parametrize("single", [True, False], ids=["one term", "many terms"])
@pytest.mark.parametrize(("name", "element"), [("gaussian", "i16"), ("rademacher", "fp32")])
@pytest.mark.parametrize("target", TARGETS)
def test_compilers_round_every_product_and_every_sum_once(target, name, element, single, compiler):
    kernel = compiler(name, element, target, single=single)
    texts = {form: kernel.asm[form] for form in FUSED if form in kernel.asm}
    if "cubin" in kernel.asm:
        texts["sass"] = kernel.asm["sass"]
    assert texts
    for form, text in texts.items():
        assert re.search(r"mul\.rn\.f32|FMUL|v_(?:pk_)?mul_f32", text)
        assert not re.findall(FUSED[form], text)
    assert kernel.metadata.shared == 0  # nothing goes from thread to thread


@needs_triton
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_a_compiler_that_may_fuse_does_so_and_is_found_out(target, compiler):
    kernel = compiler("gaussian", "fp32", target, enable_fp_fusion=True)
    texts = {form: kernel.asm[form] for form in FUSED if form in kernel.asm}
    assert texts and all(re.search(FUSED[form], text) for form, text in texts.items())


@needs_triton
def test_places_and_pointers_are_counted_in_64_bits(compiler):
    """A program's number becomes 64 bits wide before anything is multiplied by it."""
    text = re.sub(r" loc\(.*", "", compiler("gaussian", "i16", "sm_90").asm["ttir"])
    (number,) = re.findall(r"(%\w+) = tt\.get_program_id", text)
    uses = re.findall(rf"= (\S+) .*{number}\b.*", text)
    assert uses == ["arith.extsi"]
    steps = re.findall(r"= tt\.addptr %(?:source|out|other), \S+ : (.*)", text)
    assert steps == ["!tt.ptr<i16>, i64"] * 3


@needs_triton
def test_no_argument_of_a_launch_makes_triton_compile_anew():
    """No value is looked at, and each is an int32, whatever the seed, the place and the size."""
    code = """
from zo_core.noise import gpu, triton_kernels
for p in triton_kernels.write.params:
    assert p.is_constexpr or p.do_not_specialize, p.name
for number in (0, 1, 16, -1, 2**31, 2**32 - 1, 2**40 + 5, 2**63 + 5, 2**64 - 1, -(2**63)):
    low, high = gpu._words(number)
    assert -2**31 <= low < 2**31 and -2**31 <= high < 2**31
    assert (low % 2**32) + (high % 2**32) * 2**32 == number % 2**64
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr.decode()


# ------------------------------------------------------------------------------- who is launched


def test_a_device_without_the_kernel_says_why(monkeypatch):
    why = gpu.available.__wrapped__
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why(CUDA) == "torch sees no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert "pip install triton" in why(CUDA)
    monkeypatch.setattr(gpu, "find_spec", find_spec)

    def broken(device):
        raise RuntimeError("no C compiler\nand more")

    monkeypatch.setattr(gpu, "find_spec", lambda name: object())
    monkeypatch.setattr(gpu, "mismatches", broken)
    assert why(CUDA) == "triton fails (RuntimeError: no C compiler)"
    monkeypatch.setattr(gpu, "mismatches", lambda device: 3)
    assert why(CUDA) == "triton's bits differ from the reference's in 3 elements"
    monkeypatch.setattr(gpu, "mismatches", lambda device: 0)
    assert why(CUDA) is None


def test_the_trial_finds_a_kernel_that_rounds_otherwise_or_has_no_tail(monkeypatch):
    def fused(source, outs, name, key, terms, first):
        z = reference.sample(name, terms[0].seed, key, source.numel(), first=first)
        outs[0].copy_(source.double() + z.double() * terms[0].coefficient)

    def without_tail(source, outs, name, key, terms, first):
        z = reference.sample(name, terms[0].seed, key, source.numel(), first=first)
        outs[0].copy_(source + z.clamp(-4.17, 4.17) * terms[0].coefficient)

    for write, wrong in ((reference.write, range(1)), (fused, range(9, 3000))):
        monkeypatch.setattr(gpu, "write", write)
        assert gpu.mismatches(torch.device("cpu")) in wrong
    monkeypatch.setattr(gpu, "write", without_tail)
    assert gpu.mismatches(torch.device("cpu")) == 1


def test_a_gpu_tensor_goes_to_triton_where_it_runs_and_else_to_the_reference(monkeypatch):
    calls = []
    monkeypatch.setattr(noise.cpu, "takes", lambda flat: False)
    monkeypatch.setattr(gpu, "takes", lambda flat: True)
    monkeypatch.setattr(noise, "_fastest", lambda device: ("triton", reason))
    monkeypatch.setattr(gpu, "write", lambda *args: calls.append("triton"))
    monkeypatch.setattr(reference, "write", lambda *args: calls.append("torch"))
    params = Params([("p", torch.zeros(3))])
    reason: str | None = None
    for kernel in ("auto", "triton", "torch"):
        noise.add_(params, "gaussian", TERMS["one"], kernel)
    with pytest.raises(ValueError, match=r"'numba' can't be used: it takes .* on the CPU"):
        noise.add_(params, "gaussian", TERMS["one"], "numba")
    assert calls == ["triton", "triton", "torch"]
    reason = "triton is not installed"
    noise.add_(params, "gaussian", TERMS["one"])
    with pytest.raises(ValueError, match="kernel='triton' can't be used: triton is not installed"):
        noise.add_(params, "gaussian", TERMS["one"], "triton")
    assert calls[3:] == ["torch"]


def test_triton_refuses_the_cpu_and_the_kernel_in_use_is_named(monkeypatch):
    with pytest.raises(ValueError, match="real float tensors on a GPU, got"):
        noise.add_(Params([("p", torch.zeros(3))]), "gaussian", TERMS["one"], "triton")
    assert not gpu.takes(torch.zeros(3)) and not gpu.takes(torch.zeros(3, device="meta"))
    monkeypatch.setattr(gpu, "available", lambda device: None)
    assert noise.kernel_in_use(CUDA) == ("triton", "compiled for this GPU")
    monkeypatch.setattr(gpu, "available", lambda device: "torch sees no GPU")
    assert noise.kernel_in_use(CUDA) == ("torch", "torch sees no GPU (far slower)")
    assert noise.kernel_in_use(torch.device("meta"))[0] == "torch"


def test_triton_is_not_imported_before_it_is_used():
    code = "import sys, zo_core.noise; assert 'triton' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr.decode()


# --------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", reference.LAWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms", TERMS)
def test_a_gpu_gives_the_bits_of_the_cpus_reference(name, dtype, terms):
    assert noise.kernel_in_use(CUDA)[0] == "triton"
    source = weights(3 * 2**16 + 5, dtype, "cuda")
    for first, threshold, both in ((0, None, False), (77, 0.01, True), (2**33 + 5, None, True)):
        ours = compare(gpu.write, source, name, TERMS[terms], first, threshold, both)
        host = [torch.empty_like(source, device="cpu") for _ in ours]
        reference.write(source.cpu(), host, name, KEY, TERMS[terms], first, threshold)
        for out, right in zip(ours, host, strict=True):
            assert torch.equal(bits(out), bits(right))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", reference.LAWS)
def test_a_tensor_on_a_gpu_may_be_longer_than_32_bits_count(name):
    count = 2**32 + 2**16 + 3
    if torch.cuda.mem_get_info()[0] < 3 * count:
        pytest.skip("needs a GPU with 13 GB free")
    tensor = torch.zeros(count, dtype=torch.bfloat16, device="cuda")
    gpu.write(tensor, (tensor,), name, KEY, TERMS["one"])
    for start in (0, 2**31 - 50, 2**31, 2**32 - 50, count - 3000):
        part = torch.zeros(3000, dtype=torch.bfloat16, device="cuda")
        reference.write(part, (part,), name, KEY, TERMS["one"], start)
        assert torch.equal(tensor[start : start + 3000], part[: count - start])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("terms", TERMS)
def test_a_step_neither_compiles_anew_nor_waits_for_the_gpu(terms):
    assert noise.kernel_in_use(CUDA)[0] == "triton"
    room = torch.zeros(10**6 + 1, dtype=torch.bfloat16, device="cuda")
    kernels = set()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, count in enumerate([1, 16, 1000, 2**15, 10**6]):
            seeds = [Term(t.seed + step, t.coefficient * step) for t in TERMS[terms]]
            part = room[step % 2 : step % 2 + count]  # aligned, and not
            args = (part, (part,), "gaussian", KEY << step, seeds, step * 2**33 + step)
            kernels.add(id(gpu.launch(*args)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(kernels) == 1
