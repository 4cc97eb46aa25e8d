"""The noise stream: its definition, its statistics, and kernels that agree to the bit."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch._subclasses.fake_tensor import FakeTensorMode

from zo_core import Params, noise
from zo_core.base import Param, Term
from zo_core.directions.gaussian import Gaussian
from zo_core.noise import cpu, philox, reference, stream, team

ROOT = Path(__file__).parents[2]
KEY = 0xFEDC_BA98_7654_3210
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
TERMS = {
    "one": [Term(3, 1e-3)],
    "three": [Term(2**63 + 5, 0.1), Term(7, -0.3), Term(-1, 2.7e-5)],
}
needs_numba = pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available()))


def weights(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return (torch.randn(count, generator=generator) * 0.02).to(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(-1).view(width)


# ------------------------------------------------------------------------------------- the words


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    out = philox.philox4x32(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in out) == expected


def test_xoshiro_gives_the_known_answers_of_its_reference():
    """The first words from state 1, 2, 3, 4, as rand_xoshiro's tests have them."""
    state = [torch.tensor([n]) for n in (1, 2, 3, 4)]
    known = [641, 1573767, 3222811527, 3517856514, 836907274, 4247214768, 3867114732, 1355841295]
    assert [int(stream._next_(state)) for _ in known] == known


FROZEN_GAUSSIAN = [
    "0x1.7431100000000p+0",
    "-0x1.3d01100000000p-2",
    "0x1.1bdd9a0000000p+0",
    "-0x1.c85f9c0000000p-1",
    "-0x1.d0b9080000000p-1",
    "-0x1.37a9d00000000p-3",
]
FROZEN_TAIL = "-0x1.1f71120000000p+2"
FROZEN_SIGNS = "0x8c5340a16c8c101d"
FROZEN_UNIFORM = ["0x1.234fec0000000p-2", "0x1.250ca80000000p-1"]


def test_the_layout_of_the_stream_is_frozen():
    """A change here needs a new format number: recorded trajectories replay these bits."""
    gaussian = reference.sample("gaussian", 11, KEY, 8195)
    chosen = gaussian[[0, 32, 64, 2047, 2048, 8194]]
    assert [float(x).hex() for x in chosen] == FROZEN_GAUSSIAN
    assert float(reference.sample("gaussian", 0, KEY, 2467)[-1]).hex() == FROZEN_TAIL
    signs = reference.sample("rademacher", 11, KEY, 40_000)
    assert hex(sum(1 << i for i in range(64) if signs[32_700 + i] < 0)) == FROZEN_SIGNS
    uniform = reference.sample("uniform", 11, KEY, 2000)
    assert [float(x).hex() for x in uniform[[0, 1999]]] == FROZEN_UNIFORM


# -------------------------------------------------------------------------------- the statistics


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_gaussian_is_standard_normal(seed):
    count = 1 << 22
    z = torch.zeros(count)
    noise.add_(Params([("w", z)]), "gaussian", [Term(seed, 1.0)])
    z = z.double()
    assert stats.kstest(z.numpy(), "norm").statistic < 1.95 / count**0.5  # p = 0.001
    error = count**-0.5
    assert abs(z.mean()) < 4 * error
    assert abs(z.square().mean() - 1) < 4 * 2**0.5 * error
    assert abs(z.pow(3).mean()) < 4 * 15**0.5 * error
    assert abs(z.pow(4).mean() - 3) < 4 * 96**0.5 * error
    assert 4.5 < z.abs().max() < 7.06


def halves() -> torch.Tensor:
    return torch.arange(2**16)


def exact_quantile(p: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(-special.ndtri(p.double().numpy()))


def test_every_16_bit_word_is_near_the_exact_quantile_of_its_cell():
    magnitude = halves()[1 : 2**15]
    z = reference._body(magnitude)
    exact = exact_quantile((2 * magnitude + 1) / 2**17)
    away = (z - exact).abs()
    assert away.max() < 5e-3  # in the outer cells it is the root mean square that counts
    assert away[64:].max() < 4.5e-5
    assert away.square().mean().sqrt() < 3e-5
    assert torch.equal(reference._body(magnitude + 2**15), -z)
    assert (z.diff() < 1e-4).all()  # falls, but for the seams between polynomials
    assert reference._body(halves()[[0, 2**15]]).abs().max() == 0  # left to the tail


def test_the_distribution_function_is_the_normal_one_within_what_the_docs_say():
    """No draw is needed: there are 2^16 values of equal probability, and a tail."""
    magnitude = halves()[1 : 2**15]
    z = reference._body(magnitude).double()
    below = torch.from_numpy(special.ndtr(-z.numpy()))  # P(|Z| > z) / 2 must lie in the cell
    assert (below - (2 * magnitude + 1) / 2**17).abs().max() < 2e-5


def tail_words() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    some = torch.randint(0, 2**23, (1 << 20,), generator=generator)
    some[: 1 << 12] = torch.arange(1 << 12)
    some[-1] = 2**23 - 1
    return some << 9


def test_the_tail_is_near_the_exact_quantile_out_to_seven_sigma():
    word = tail_words()
    z = reference._tail(word)
    v = (2 * (word >> 9) + 1).double() * 2.0**-23
    assert (z - exact_quantile(v / 2**17)).abs().max() < 2.3e-5
    assert 7.04 < z.max() < 7.06
    assert 4.169 < z.min() < 4.1697
    assert torch.equal(reference._tail(word + 511), z)  # the 9 lower bits don't count


def test_moments_of_all_values_are_those_of_a_normal_number():
    z = reference._body(halves()[1 : 2**15]).double()
    tail = reference._tail(torch.arange(2**20) * 2**12).double()
    for power, moment, within in [(2, 1, 1e-6), (4, 3, 3e-5), (6, 15, 2e-3)]:
        total = z.pow(power).sum() + tail.pow(power).mean()
        assert abs(total / 2**15 - moment) < within


@needs_numba
def test_a_hundred_million_draws_pass_for_normal_in_body_and_tails():
    """Kolmogorov and Smirnov's test, moments, and the count past 4, 4.5 and 5 sigma."""
    count, parts = 10**8, 10
    size = count // parts
    edges = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    inside, sums, outside = torch.zeros(4002), torch.zeros(5).double(), torch.zeros(3)
    limits = torch.tensor([4.0, 4.5, 5.0])
    z = torch.empty(size)
    for part in range(parts):
        cpu.write(z.zero_(), (z,), "gaussian", KEY, [Term(77, 1.0)], part * size)
        inside += torch.bincount(torch.bucketize(z.double(), edges), minlength=4002)
        sums += torch.stack([z.double().pow(k).sum() for k in range(5)])
        outside += torch.stack([(z.abs() > limit).sum() for limit in limits])
    cdf = inside.double().cumsum(0)[:-1] / count
    assert (cdf - torch.from_numpy(special.ndtr(edges.numpy()))).abs().max() < 1.95 / count**0.5
    mean, square, third, fourth = (sums[1:] / count).tolist()
    error = count**-0.5
    assert abs(mean) < 4 * error
    assert abs(square - 1) < 4 * 2**0.5 * error
    assert abs(third) < 4 * 15**0.5 * error
    assert abs(fourth - 3) < 4 * 96**0.5 * error
    for limit, seen in zip(limits.tolist(), outside.tolist(), strict=True):
        expected = 2 * count * float(special.ndtr(-limit))
        assert abs(seen - expected) < 4 * expected**0.5


def test_neighbouring_elements_are_independent():
    """Halves of a word, lanes, steps and blocks are apart by 32, 1, 64 and 2048."""
    z = reference.sample("gaussian", 5, KEY, 1 << 20)
    for lag in (1, 32, 64, 2048):
        a, b = z[lag:], z[:-lag]
        for x, y in [(a, b), (a.square() - 1, b.square() - 1), (a, b.square() - 1)]:
            product = x * y
            assert abs(product.mean()) < 4 * product.std() * product.numel() ** -0.5


def test_rademacher_is_balanced_signs():
    z = reference.sample("rademacher", 5, KEY, 1 << 20)
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert abs(z.sum()) < 4 * 1024
    for lag in (1, 32, 1024, 32_768):  # lanes, bits, steps and blocks are apart
        assert abs((z[lag:] * z[:-lag]).sum()) < 4 * 1024


def test_uniform_is_uniform_and_apart_from_the_directions_of_its_seed():
    u = reference.sample("uniform", 5, KEY, 1 << 18)
    assert 0 <= u.min() and u.max() < 1
    assert torch.equal(u * 2**24, (u * 2**24).floor())
    counts = torch.histc(u, 64, 0, 1)
    assert ((counts - 4096) ** 2 / 4096).sum() < 110  # chi-square with 63 degrees of freedom
    z = reference.sample("gaussian", 5, KEY, 1 << 18)
    for f in (z, z.abs()):  # of the same words, |z| would be a function of u
        together = torch.stack([u, f])
        assert abs(torch.corrcoef(together)[0, 1]) < 4 / 512


@pytest.mark.parametrize("name", reference.LAWS)
def test_streams_of_other_seeds_and_tensors_are_uncorrelated(name):
    count = 1 << 16
    mean = 0.5 if name == "uniform" else 0.0
    base = reference.sample(name, 100, KEY, count) - mean
    for seed, key in [(101, KEY), (100, KEY + 1), (100 + 2**32, KEY), (KEY, 100)]:
        other = reference.sample(name, seed, key, count) - mean
        assert abs((base * other).mean()) < 4 * count**-0.5


# ------------------------------------------------------------- a value depends on its place alone


@pytest.mark.parametrize("name", reference.LAWS)
@pytest.mark.parametrize("chunk", [100, 2048, 8192, 65536])
def test_the_reference_does_not_depend_on_its_chunk(name, chunk):
    a, b = weights(20_011), weights(20_011)
    reference.write(a, (a,), name, KEY, TERMS["three"])
    reference.write(b, (b,), name, KEY, TERMS["three"], chunk=chunk)
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", reference.LAWS)
@pytest.mark.parametrize("first", [1, 255, 256, 2048, 8191, 8192, 65_537])
def test_any_part_of_a_stream_can_be_had_alone(name, first):
    whole = reference.sample(name, 9, KEY, first + 3000)
    assert torch.equal(whole[first:], reference.sample(name, 9, KEY, 3000, first=first))


@pytest.mark.parametrize("name", reference.LAWS)
@pytest.mark.parametrize("kernel", ["torch", pytest.param("numba", marks=needs_numba)])
def test_places_beyond_32_bits_do_not_wrap_around(name, kernel):
    write = reference.write if kernel == "torch" else cpu.write

    def at(first: int) -> torch.Tensor:
        out = torch.zeros(4096)
        write(out, (out,), name, KEY, [Term(1, 1.0)], first)
        return out

    for power in (32, 33, 37, 39):  # elements, and the lanes of either law, pass 2^32
        far = at(2**power)
        assert not torch.equal(far, at(0))
        assert torch.equal(far[1000:], at(2**power + 1000)[:-1000])
        assert torch.equal(at(2**power - 2048)[2048:], far[:2048])


# ----------------------------------------------------------------- the kernel and the reference


@needs_numba
@pytest.mark.parametrize("name", reference.LAWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_numba_equals_the_reference_to_the_bit(name, dtype, terms):
    for count in (0, 1, 63, 767, 2048, 2049, 8193, 70_001):
        for first in (0, 77, 2048, 5 * 32_768 + 3, 2**40 + 5):
            a, b = weights(count, dtype), weights(count, dtype)
            reference.write(a, (a,), name, KEY, terms, first)
            cpu.write(b, (b,), name, KEY, terms, first)
            assert torch.equal(bits(a), bits(b)), (count, first)


@needs_numba
@pytest.mark.parametrize("name", reference.LAWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("threshold", [None, 0.013], ids=["all", "small"])
def test_both_sides_and_small_weights_equal_the_reference_to_the_bit(
    name, dtype, terms, threshold
):
    source = weights(70_001, dtype)
    source[:3] = torch.tensor([0.0, -0.0, 0.02])
    before = source.clone()
    ours, theirs = ([torch.empty_like(source) for _ in range(2)] for _ in range(2))
    cpu.write(source, ours, name, KEY, terms, 77, threshold)
    reference.write(source, theirs, name, KEY, terms, 77, threshold)
    assert torch.equal(bits(source), bits(before))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(bits(a), bits(b))
    cpu.write(source, (source,), name, KEY, terms, 77, threshold)
    assert torch.equal(bits(source), bits(ours[0]))
    moved = bits(source) != bits(before)
    if threshold is None:
        assert moved.any()
    else:
        assert moved.any() and not (moved & (before.abs() > threshold)).any()


@needs_numba
@pytest.mark.parametrize("name", reference.LAWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1e38])
def test_stochastic_rounding_equals_the_reference_to_the_bit_on_every_weight(name, dtype, scale):
    every = torch.arange(2**16).to(torch.uint16).view(torch.int16).view(dtype)
    for terms in ([Term(4, scale)], [Term(4, scale), Term(5, -scale)]):
        a, b = every.clone(), every.clone()
        reference.write_rounded(a, name, KEY, terms, 9, 77)
        cpu.write_rounded(b, name, KEY, terms, 9, 77)
        number = ~every.isnan()
        assert torch.equal(bits(a)[number], bits(b)[number])
        assert b[~number].isnan().all()


def test_stochastic_rounding_in_the_pass_is_that_of_pieces(monkeypatch):
    monkeypatch.setattr(noise, "PIECE", 1000)
    w = weights(7000, torch.bfloat16).view(70, 100)
    for tensor in (w.clone(), w.t().contiguous().t()):
        params = Params([("w", tensor)])
        expected = w.clone()
        for piece in noise.pieces(Params([("w", expected)])):
            total = noise.draw(piece, "gaussian", TERMS["one"]).add_(piece.part)
            piece.part.copy_(noise.rounded(piece, total, 9))
        noise.add_(params, "gaussian", TERMS["one"], rounding=9)
        assert torch.equal(tensor, expected)
        assert not torch.equal(tensor, w)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("write", [reference.write, pytest.param(cpu.write, marks=needs_numba)])
def test_no_terms_leave_every_bit(write, dtype):
    source = weights(5000, dtype)
    outs = [torch.empty_like(source) for _ in range(2)]
    write(source, outs, "gaussian", KEY, [], 77)
    assert all(torch.equal(bits(out), bits(source)) for out in outs)


@needs_numba
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_outermost_element_is_finished_wherever_it_stands(dtype):
    """Place 2466 of this stream is one; here in whole units, at ends, and alone."""
    for first, count in [(0, 4096), (2048, 2048), (2466, 1), (2400, 67), (2048, 70_000)]:
        a = weights(count, dtype)
        b, c = a.clone(), torch.empty_like(a)
        reference.write(a, (a,), "gaussian", KEY, [Term(0, 0.1)], first)
        cpu.write(b, (b, c), "gaussian", KEY, [Term(0, 0.1)], first)
        assert torch.equal(bits(a), bits(b))
        change = (b.double() - c.double())[2466 - first]
        assert change == pytest.approx(-0.2 * 4.49128, rel=1e-2)


@needs_numba
@pytest.mark.parametrize("features", ["-avx", "+avx,+avx2,+fma,+f16c"])
def test_every_processor_gives_the_same_bits(features, tmp_path):
    """Compiled for a processor with fewer features than this one, where there are fewer."""
    code = (
        "import hashlib, torch; from zo_core.noise import cpu; from zo_core.base import Term\n"
        "digest = hashlib.sha256()\n"
        "for name in ('gaussian', 'rademacher'):\n"
        "    x = torch.zeros(40_001, dtype=torch.bfloat16)\n"
        "    cpu.write(x, (x,), name, 5, [Term(3, 0.7)], 2048)\n"
        "    digest.update(x.view(torch.uint8).numpy().tobytes())\n"
        "print(digest.hexdigest())"
    )
    own = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features}
    own["NUMBA_CACHE_DIR"] = str(tmp_path)
    if platform.machine() not in ("x86_64", "AMD64") or _lacks(features):
        pytest.skip(f"this processor can't run code for x86-64 {features}")
    seen = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | extra,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for extra in ({}, own)
    ]
    assert seen[0] == seen[1] != ""


def _lacks(features: str) -> bool:
    from numba.core.codegen import get_host_cpu_features

    own = get_host_cpu_features().split(",")
    return any(f not in own for f in features.split(",") if f[0] == "+")


@needs_numba
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 3e-8, 1e-6, 1.0, 1e4, 1e38])
def test_16_bit_rounding_equals_torch_on_every_weight(dtype, scale):
    every = torch.arange(2**16).to(torch.uint16).view(torch.int16).view(dtype)
    a, b = every.clone(), every.clone()
    reference.write(a, (a,), "gaussian", KEY, [Term(4, scale)])
    cpu.write(b, (b,), "gaussian", KEY, [Term(4, scale)])
    number = ~every.isnan()
    assert torch.equal(bits(a)[number], bits(b)[number])
    assert b[~number].isnan().all()


@needs_numba
@pytest.mark.parametrize("name", reference.LAWS)
def test_the_number_of_threads_does_not_matter(name):
    before = torch.get_num_threads()
    outs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append(weights(1_000_003))
            cpu.write(outs[-1], (outs[-1],), name, KEY, TERMS["three"], 12_345)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


@needs_numba
@pytest.mark.parametrize("threshold", [None, 0.75], ids=str)
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_threads_of_torch_and_others_give_the_same_bits(dtype, sides, threshold, monkeypatch):
    ends, counts = [], (700_001, 5, 0, 1_000_003)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for own in (True, False):
            monkeypatch.setattr(team, "available", lambda own=own: own and team._parallel())
            outs = [[weights(n, dtype) for _ in range(sides)] for n in counts]
            flats = [
                cpu.Flat(weights(n, dtype), some, KEY + i, 77 * i, threshold)
                for i, (n, some) in enumerate(zip(counts, outs, strict=True))
            ]
            cpu.prepared(flats, "gaussian")(TERMS["three"])
            ends.append([bits(side) for some in outs for side in some])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *ends))
    for flat, some in zip(flats, outs, strict=True):
        wanted = [torch.empty_like(side) for side in some]
        terms = TERMS["three"]
        source, key, first = flat.source, flat.key, flat.first
        reference.write(source, wanted, "gaussian", key, terms, first, threshold)
        assert all(map(torch.equal, map(bits, some), map(bits, wanted)))


def test_the_first_call_loads_what_the_later_ones_run(monkeypatch):
    # A run is measured from its first call on: what is loaded later would count as its memory.
    if not team.possible():
        pytest.skip("torch has one thread, or its threads are not OpenMP's")
    asked, load = [], cpu._kernels().team_of
    monkeypatch.setattr(cpu._kernels(), "team_of", lambda *kind: asked.append(kind) or load(*kind))
    params = Params([("w", torch.zeros(1))])
    for thresholds in (None, {params[0].key: 0.0}):
        noise.add_(params, "gaussian", TERMS["one"], thresholds=thresholds)
    assert asked == [(np.float32, False, False), (np.float32, False, True)]


def test_a_team_is_of_as_many_threads_and_all_get_the_address():
    if team._parallel() is None:
        pytest.skip("torch has no threads of GNU's OpenMP here")
    seen, meet = [], threading.Barrier(2, timeout=60)

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def body(address):
        meet.wait()  # nobody gets on alone
        seen.append((address, threading.get_native_id()))

    team.run(ctypes.cast(body, ctypes.c_void_p).value, 4711, 2)
    assert [address for address, _ in seen] == [4711, 4711]
    assert len({thread for _, thread in seen}) == 2
    assert threading.get_native_id() in {thread for _, thread in seen}


def test_a_team_is_not_asked_for_where_its_threads_would_wait_for_a_core(monkeypatch):
    if team._parallel() is None:
        pytest.skip("torch has no threads of GNU's OpenMP here")
    seen = []
    for second, load in enumerate((1.4, 1.6)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load * os.cpu_count(), 0, 0))
        monkeypatch.setattr(team.time, "monotonic", lambda second=second: -5.0 - second)
        seen.append(team.available())
    assert seen == [True, False]


def test_where_the_load_is_not_told_cores_are_taken_for_free(monkeypatch):
    def unknown():
        raise OSError("no /proc/loadavg in this sandbox")

    monkeypatch.setattr(os, "getloadavg", unknown)
    monkeypatch.setattr(team.time, "monotonic", lambda: -99.0)
    assert team.available() == (team._parallel() is not None)


@pytest.fixture
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_numba
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # numba says so too
def test_a_kernel_without_memory_is_an_error_in_a_team_as_well(monkeypatch, torch_threads):
    if team._parallel() is None:
        pytest.skip("torch has no threads of GNU's OpenMP here")
    begin = cpu._along

    def endless(job, terms):  # more terms than any memory holds
        begin(job, terms)
        job[5] = 1 << 60

    monkeypatch.setattr(team, "available", lambda: True)
    monkeypatch.setattr(cpu, "_along", endless)
    torch.set_num_threads(2)
    out = weights(1_000_003)
    with pytest.raises(
        MemoryError, match=r"^Expected \d+ pieces .* got 0: the noise kernel .*\.$"
    ):
        cpu.write(out, (out,), "gaussian", KEY, TERMS["one"])


@needs_numba
def test_a_team_is_never_smaller_than_that_of_torch(monkeypatch, torch_threads):
    if team._parallel() is None:
        pytest.skip("torch has no threads of GNU's OpenMP here")
    asked, run = [], team.run
    monkeypatch.setattr(team, "available", lambda: True)
    monkeypatch.setattr(team, "run", lambda *given: asked.append(given[2]) or run(*given))
    torch.set_num_threads(4)
    out, wanted = weights(2 * cpu._ALONE), weights(2 * cpu._ALONE)  # work for two
    cpu.write(out, (out,), "gaussian", KEY, TERMS["one"])
    reference.write(wanted, (wanted,), "gaussian", KEY, TERMS["one"])
    assert asked == [4] and torch.equal(bits(out), bits(wanted))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_error_is_raised_after_all_threads_have_stopped_writing(error, torch_threads):
    begun, done = threading.Event(), []

    def work(low, high):
        if low == 0:
            begun.wait(60)
            raise error
        begun.set()
        time.sleep(0.3)
        done.append(low)

    torch.set_num_threads(2)
    with pytest.raises(error):
        cpu._run(work, [(0, 1), (1, 2)])
    assert done == [1]


@needs_numba
def test_threads_of_our_own_keep_what_they_write_to(monkeypatch, torch_threads):
    works, arrays = [], [np.zeros(1_000_003, np.float32) for _ in range(3)]
    monkeypatch.setattr(team, "available", lambda: False)
    monkeypatch.setattr(cpu, "_run", lambda work, ranges: works.append(work))
    torch.set_num_threads(2)
    source, *outs = map(torch.from_numpy, arrays)
    cpu.write(source, outs, "gaussian", KEY, TERMS["one"])
    alive = [weakref.ref(array) for array in arrays]
    del arrays, source, outs
    assert all(ref() is not None for ref in alive)
    works.clear()
    assert all(ref() is None for ref in alive)


@needs_numba
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_does_not_wait_for_threads_that_it_has_not(tmp_path):
    program = """
import os, torch
from zo_core.base import Term
from zo_core.noise import cpu, team
torch.set_num_threads(2)
os.getloadavg = lambda: (0.0, 0.0, 0.0)
ours, theirs = torch.zeros(2, 1_000_000)
def made(out):
    cpu.write(out, (out,), "rademacher", 5, [Term(3, 1.0)])
    return out.numpy().tobytes()
wanted = made(ours)
child = os.fork()
if not child:
    os._exit(0 if not team.available() and made(theirs) == wanted else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=120)
    assert done.returncode == 0


def test_ranges_cover_every_element_once_and_start_with_a_block():
    for count, first, threads in [(1, 0, 4), (10**6, 0, 4), (10**6 + 7, 12_345, 3), (0, 5, 2)]:
        ranges = cpu._ranges(count, first, threads)
        assert [i for r in ranges for i in (r[0],)] == [0, *(r[1] for r in ranges)][: len(ranges)]
        assert sum(high - low for low, high in ranges) == count
        assert all((first + low) % 32_768 == 0 for low, _ in ranges[1:])


# ----------------------------------------------------------------------------- the one entrance

KERNELS = ["torch", pytest.param("numba", marks=needs_numba), "auto"]


def held(tensors: dict[str, torch.Tensor]) -> Params:
    """Return tensors over which a pass has been made already, and taken back."""
    params = Params(tensors.items())
    before = [t.clone() for t in params.tensors]
    noise.add_(params, "gaussian", TERMS["one"])
    for tensor, was in zip(params.tensors, before, strict=True):
        tensor.copy_(was)
    return params


def moved(params: Params) -> None:
    for tensor in params.tensors:
        tensor.data = tensor.data.clone()


def cast(params: Params) -> None:
    for tensor in params.tensors:
        tensor.data = tensor.data.bfloat16()


def turned(params: Params) -> None:
    params.tensors[0].data = params.tensors[0].data.t()


PASSES = {"same": {}, "other law": {"name": "rademacher"}, "bounded": {"thresholds": 0.01}}


@pytest.mark.parametrize("how", PASSES)
@pytest.mark.parametrize("change", [None, moved, cast, turned])
def test_a_pass_that_is_made_again_has_the_bits_of_the_first(change, how, monkeypatch):
    tensors = {"a": weights(600).view(20, 30), "b": weights(7)}
    params = held(tensors)
    if change is not None:
        change(params)
    options = {"name": "gaussian", **PASSES[how]}
    if "thresholds" in options:
        options["thresholds"] = {p.key: options["thresholds"] for p in params}
    fresh = Params((p.name, p.tensor.clone()) for p in params)
    prepared = []
    real = cpu.prepared
    monkeypatch.setattr(cpu, "prepared", lambda *a: prepared.append(1) or real(*a))
    noise.add_(params, terms=TERMS["three"], **options)
    assert bool(prepared) == (cpu.available() is not None or (change, how) != (None, "same"))
    noise.add_(fresh, terms=TERMS["three"], kernel="torch", **options)
    assert all(map(torch.equal, params.tensors, fresh.tensors))


@needs_numba
def test_what_is_prepared_finds_memory_that_lies_elsewhere_by_now():
    source, buffer = weights(1000), torch.empty(1000)
    write = cpu.prepared([cpu.Flat(source, (buffer[:],), KEY, 0, None)], "gaussian")
    write(TERMS["one"])
    wanted, was = buffer.clone(), buffer.data_ptr()
    buffer.untyped_storage().resize_(0)
    others = [torch.zeros(1000) for _ in range(50)]  # one of them where it was
    buffer.untyped_storage().resize_(4000)
    assert buffer.data_ptr() != was
    write(TERMS["one"])
    assert torch.equal(buffer, wanted) and not any(other.any() for other in others)


@pytest.mark.parametrize("second", [0.5, 0.1, None])
def test_a_pass_is_made_anew_where_thresholds_are_others(second):
    params, bounds = Params([("a", torch.linspace(-1, 1, 600))]), {}
    bounds[params[0].key] = 0.5
    noise.add_(params, "gaussian", TERMS["one"], thresholds=bounds)
    fresh = Params((p.name, p.tensor.clone()) for p in params)
    if second is not None:
        bounds[params[0].key] = second  # the same mapping, written to
    given = None if second is None else bounds
    noise.add_(params, "gaussian", TERMS["one"], thresholds=given)
    noise.add_(fresh, "gaussian", TERMS["one"], "torch", given)
    assert torch.equal(params.tensors[0], fresh.tensors[0])


def test_a_pass_that_is_kept_keeps_nobody_alive():
    params = held({"a": weights(600)})
    assert params in noise._held
    gone = weakref.ref(params)
    del params
    assert gone() is None


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_do_not_change_the_noise(kernel, dtype, monkeypatch):
    monkeypatch.setattr(noise, "PIECE", 1000)  # rows, and rows longer than a piece
    for shape in [(50, 30), (2, 1100), (2, 2, 40, 20)]:
        plain = torch.zeros(shape, dtype=dtype)
        strided = torch.zeros(shape[::-1], dtype=dtype).permute(*reversed(range(len(shape))))
        gaps = torch.zeros((*shape, 2), dtype=dtype)
        for t in (plain, strided, gaps[..., 0]):
            noise.add_(Params([("w", t)]), "gaussian", TERMS["three"], kernel)
        assert torch.equal(plain, strided)
        assert torch.equal(plain, gaps[..., 0])
        assert not gaps[..., 1].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_autograd_records_nothing_but_sees_the_change(kernel):
    p = torch.nn.Parameter(torch.ones(10))
    loss = (p * p).sum()
    noise.add_(Params([("p", p)]), "rademacher", [Term(1, 0.5)], kernel)
    assert p.is_leaf
    assert p.requires_grad
    assert set(p.tolist()) == {0.5, 1.5}
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kernel", KERNELS)
def test_inference_mode_is_fine(kernel):
    outside = torch.zeros(5)
    with torch.inference_mode():
        inside = torch.zeros(5)
        for t in (outside, inside):
            noise.add_(Params([("p", t)]), "gaussian", TERMS["one"], kernel)
        assert torch.equal(outside, inside)
        assert outside.any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_global_random_streams_are_untouched_and_no_terms_change_nothing(kernel):
    state = torch.get_rng_state()
    p = weights(100)
    noise.add_(Params([("p", p)]), "gaussian", [], kernel)
    assert torch.equal(p, weights(100))
    noise.add_(Params([("p", p)]), "gaussian", TERMS["one"], kernel)
    assert not torch.equal(p, weights(100))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pieces_are_the_stream_of_the_whole(dtype, monkeypatch):
    monkeypatch.setattr(noise, "PIECE", 1000)
    tensors = [torch.zeros(0), torch.zeros(50, 30), torch.zeros(2, 1100), torch.zeros(())]
    strided = torch.zeros(30, 50).t()
    params = [Param(str(i), t.to(dtype), i) for i, t in enumerate([*tensors, strided])]
    copies = [Param(p.name, p.tensor.clone(), p.key) for p in params]
    noise.add_(params, "gaussian", TERMS["three"])
    for piece in noise.pieces(copies):
        assert piece.part.dim() == 1 and piece.part.numel() <= 1000
        piece.part.copy_(noise.draw(piece, "gaussian", TERMS["three"]))
    for p, c in zip(params, copies, strict=True):
        assert torch.equal(p.tensor, c.tensor)


def test_no_tensors_are_fine():
    noise.add_([], "gaussian", TERMS["one"])
    assert list(noise.pieces([])) == []


def test_errors_say_what_is_wrong(monkeypatch):
    params = Params([("p", torch.zeros(3))])
    with pytest.raises(
        ValueError, match="Expected one of gaussian, rademacher, uniform, got 'cauchy'"
    ):
        noise.add_(params, "cauchy", TERMS["one"])
    monkeypatch.setattr(cpu, "available", lambda: "numba is not installed; pip install it")
    with pytest.raises(ValueError, match="numba is not installed"):
        noise.add_(params, "gaussian", TERMS["one"], "numba")
    noise.add_(params, "gaussian", TERMS["one"])  # auto falls back
    assert noise.kernel_in_use(torch.device("cpu"))[0] == "torch"
    with pytest.raises(ValueError, match="real float tensors on the CPU"):
        meta = torch.zeros(3, device="meta")
        noise.add_(Params([("p", meta)]), "gaussian", TERMS["one"], "numba")


@pytest.mark.parametrize("tensors", ["plain", "strided"])
@pytest.mark.parametrize("work", ["add_", "pieces"])
def test_a_traced_pass_over_fake_weights_takes_the_scratch_of_a_live_one(
    work, tensors, live_bytes, monkeypatch
):
    """As long as it is longer than a piece, a tensor's size does not matter."""
    monkeypatch.setattr(cpu, "available", lambda: "not here")  # torch alone shows what it takes

    def peak(rows: int) -> int:
        matrix = torch.empty(rows, 2048)  # rows begin where blocks of noise do
        tensor = matrix if tensors == "plain" else torch.empty(2048, rows).t()
        with live_bytes() as meter:
            _walk(work, Params([("w", tensor)]))
        return meter.peak

    live = peak(200)
    with FakeTensorMode():
        assert abs(peak(10**6) - live) <= 1024  # a table of coefficients counts twice
    assert live > 4 * 2**18


@pytest.mark.parametrize("work", ["add_", "pieces"])
@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_a_traced_pass_over_a_device_takes_its_sweep_and_its_piece(device, work, live_bytes):
    if device == "cuda" and not torch.backends.cuda.is_built():
        pytest.skip("fake CUDA tensors need a torch that is built for CUDA")
    with FakeTensorMode():
        huge = torch.nn.Parameter(torch.empty(50_000, 70_000, device=device))
        params = Params([("w", huge)])
        with live_bytes() as meter:
            _walk(work, params)
    pieces = noise.piece_bytes(params, 1) if work == "pieces" else 0
    assert 0.9 * (pieces + noise.scratch_bytes(params)) < meter.peak
    assert meter.peak <= pieces + noise.scratch_bytes(params)


def _walk(work: str, params: Params) -> None:
    if work == "add_":
        noise.add_(params, "gaussian", TERMS["three"])
    else:
        noise.add_by_pieces_(params, Gaussian(), TERMS["three"])


def test_a_piece_is_larger_where_a_launch_costs_more(monkeypatch):
    host, device = torch.empty(10**7), torch.empty(10**7, device="meta")
    assert noise.piece_of(host.device) == noise.PIECE == 2**18
    assert noise.piece_of(torch.device("cuda")) == noise.DEVICE_PIECE == 2**22
    assert noise.piece_bytes(Params([("w", host)]), 3) == 3 * 4 * 2**18
    assert noise.piece_bytes(Params([("w", host), ("v", device)]), 3) == 3 * 4 * 2**22
    for tensor in (device.view(10, -1).t(), host.view(10, -1).t()):
        copy = 4 * noise.piece_of(tensor.device)
        plain = noise.scratch_bytes(Params([("w", tensor.t())]))
        assert noise.scratch_bytes(Params([("w", tensor)])) - plain == copy
    (piece,) = noise.pieces(Params([("w", device)]))
    assert piece.part.numel() == 2**22


def test_borders_are_where_pieces_begin(monkeypatch):
    monkeypatch.setattr(noise, "PIECE", 1000)
    tensors = [torch.zeros(0), torch.zeros(5000), torch.zeros(2, 1100), torch.zeros(1100, 2).t()]
    for tensor in (*tensors, torch.zeros(30, 50).t()):
        param = Param("w", tensor, 1)
        assert noise.borders(param) == [piece.first for piece in noise.pieces([param])]


@pytest.mark.parametrize("name", reference.LAWS)
@pytest.mark.parametrize("shape", [(1,), (300, 300), (9000,)])
def test_scratch_is_within_what_is_declared(name, shape, live_bytes):
    for t in (torch.zeros(shape), torch.zeros(shape[::-1], dtype=torch.float64).t()):
        params = Params([("w", t)])
        with live_bytes() as meter:
            noise.add_(params, name, TERMS["three"], "torch")
        assert 0 < meter.peak <= noise.scratch_bytes(params)


@needs_numba
def test_no_effect_at_import_and_no_cache_directory_needed():
    """Numba is loaded on the first call, and a cache that can't be written is done without."""
    code = """
import sys, threading, torch
from zo_core import Params, noise
from zo_core.base import Term
assert "numba" not in sys.modules and threading.active_count() == 1
from numba.core import caching
caching.CacheImpl._locator_classes = []  # as where no directory is writable
p = torch.zeros(300)
noise.add_(Params([("p", p)]), "rademacher", [Term(1, 1.0)], "numba")
assert set(p.tolist()) == {-1.0, 1.0}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("name", reference.LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_cuda_device_gives_the_bits_of_the_cpu(name, dtype):
    host = torch.linspace(-1, 1, 3 * 65536 + 5).to(dtype)
    device = host.cuda()
    terms = [Term(5, 0.25), Term(2**63 + 1, -1e-3)]
    reference.write(host, (host,), name, 7, terms)
    reference.write(device, (device,), name, 7, terms)
    assert torch.equal(host, device.cpu())


@pytest.mark.parametrize("rounding", [None, 7])
def test_autograd_notices_weights_that_were_moved_behind_its_back(rounding):
    weight = torch.ones(70, dtype=torch.bfloat16, requires_grad=True)
    loss = weight.square().sum()
    noise.add_([Param("w", weight, 3)], "gaussian", [Term(1, 0.5)], rounding=rounding)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
