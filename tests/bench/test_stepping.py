"""``zometer bench step``: what is counted is right, and what is compared is paired."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.built import build
from bench.records import UserError
from bench.records.step_speed import (
    IN_PLACE,
    TEXTBOOK,
    PassSpeed,
    Spread,
    StepCase,
    StepSample,
    StepSpeed,
    StepTimes,
    read_step_speeds,
    write_step_speed,
)
from bench.stepping import cases, child, contenders, passes, rounds, textbook
from bench.stepping.clock import Took
from bench.stepping.contenders import Bench, Ours, Textbook
from bench.stepping.peak import forward_pass, peak_bytes

MIB = 2**20


def tiny(*methods: str, **changes: object) -> StepCase:
    fields = {
        "model": "opt-tiny",
        "dtype": "float32",
        "batch_size": 2,
        "seq_len": 8,
        "methods": list(methods or ("mezo",)),
        "rounds": 2,
        "textbook_rounds": 1,
        "threads": 1,
        "noise": False,
        "peaks": False,
    }
    return StepCase.model_validate({**fields, **changes})


def bench_of(case: StepCase) -> Bench:
    spec = cases.spec(case)
    return Bench.of(spec, build(spec))


@pytest.fixture(scope="module")
def record() -> StepSpeed:
    before = torch.get_num_threads()
    try:
        case = tiny(
            "mezo", "mezo_svrg:period=3", "fzoo:candidates=3", anchor_batches=2, peaks=True
        )
        return child.measure(case)
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------ bytes


def test_peak_bytes_is_the_most_alive_at_once_and_knows_what_was_outside_a_forward_pass():
    def work():
        kept = torch.zeros(MIB, dtype=torch.uint8)
        with forward_pass("cpu"):
            passing = torch.zeros(5 * MIB, dtype=torch.uint8)
            del passing
        more = torch.zeros(2 * MIB, dtype=torch.uint8)
        del kept, more

    seen = peak_bytes(work)
    assert (seen.peak_bytes, seen.outside_bytes) == (6 * MIB, 3 * MIB)


def test_a_tensor_that_is_replaced_by_another_counts_once():
    held = [torch.zeros(MIB, dtype=torch.uint8)]

    def work():
        held[0] = held[0].clone()

    assert peak_bytes(work).peak_bytes == MIB  # old and new beside each other, less the old


def test_what_was_alive_before_does_not_count():
    held = torch.zeros(4 * MIB, dtype=torch.uint8)
    assert peak_bytes(lambda: held.add_(1)).peak_bytes < 64


def test_the_textbook_step_takes_three_copies_of_the_largest_tensor_and_ours_none():
    bench = bench_of(tiny())
    textbooks, ours = Textbook(bench), Ours(bench, "mezo")
    largest = max(t.numel() * t.element_size() for t in bench.built.params.tensors)
    assert textbooks.declared.scratch_bytes == 3 * largest
    seen = peak_bytes(textbooks.take).outside_bytes
    assert 3 * largest <= seen < 3 * largest + 4096  # and the generator's own numbers
    ours.take()
    assert peak_bytes(ours.take).outside_bytes <= ours.declared.scratch_bytes


# --------------------------------------------------------------------------------------- textbook


def test_the_textbook_step_is_the_papers_formula():
    start = torch.tensor([1.0, -2.0, 3.0])
    p = torch.nn.Parameter(start.clone())
    with torch.random.fork_rng(), torch.no_grad():
        c = textbook.step_([p], lambda: (p**2).sum(), seed=7, lr=0.1, eps=0.01)
        torch.manual_seed(7)
        z = torch.normal(0.0, 1.0, (3,))
    expected = ((start + 0.01 * z).square().sum() - (start - 0.01 * z).square().sum()) / 0.02
    assert c == pytest.approx(float(expected), rel=1e-4)
    torch.testing.assert_close(p.data, start - 0.1 * c * z)


# --------------------------------------------------------------------------------- what is counted


def test_a_sample_is_a_whole_period_and_counts_the_forward_passes_it_needs(record: StepSpeed):
    counted = {s.token: (s.steps, s.forwards) for s in record.steps}
    assert counted == {
        TEXTBOOK: (1, 2),
        "mezo": (1, 2),
        # an anchor of two minibatches at two points, then two steps of four looks
        "mezo_svrg:period=3": (3, 2 * 2 + 2 * 4),
        "fzoo:candidates=3": (1, 4),
    }


def test_every_sample_is_kept_and_the_textbook_is_taken_as_often_as_asked(record: StepSpeed):
    assert {s.token: [x.round for x in s.samples] for s in record.steps} == {
        TEXTBOOK: [0],
        "mezo": [0, 1],
        "mezo_svrg:period=3": [0, 1],
        "fzoo:candidates=3": [0, 1],
    }
    assert all(x.seconds > 0 and x.forward_seconds > 0 for s in record.steps for x in s.samples)


def test_the_record_says_what_was_measured_and_where(record: StepSpeed):
    assert record.environment.threads == 1 and record.environment.noise_kernel
    assert record.weights_bytes == 4 * record.model.trained_parameters
    assert record.forward_peak_bytes and all(s.peak for s in record.steps)
    theirs, ours = record.times(TEXTBOOK), record.times("mezo")
    assert theirs and ours and theirs.peak and ours.peak
    assert theirs.peak.outside_bytes > 100 * 1024 > 65536 > ours.peak.outside_bytes
    assert not any(s.idle_updates for s in record.steps)


def test_a_step_moves_theta_and_an_update_with_no_coefficient_is_told():
    bench = bench_of(tiny())
    ours = Ours(bench, "mezo")
    before = [t.clone() for t in bench.built.params.tensors]
    ours.take()
    assert not any(map(torch.equal, before, bench.built.params.tensors))
    assert ours.idle_updates == 0
    bench.closure = lambda: contenders.Closure(lambda: torch.tensor(1.0))  # type: ignore[method-assign]
    ours.take()
    assert ours.idle_updates == 1


def test_the_minibatch_is_the_same_in_every_round():
    bench = bench_of(tiny())
    with torch.inference_mode():
        assert float(bench.closure()()) == float(bench.closure()())


# ------------------------------------------------------------------------------------------ rounds


class Noted:
    """A contender, or a forward pass, that notes when it was taken."""

    def __init__(self, token: str, notes: list[str]) -> None:
        self.token, self.notes = token, notes

    def take(self) -> None:
        self.notes.append(self.token)


def test_steps_are_taken_in_turns_between_forward_passes_and_backwards_every_other_round(
    monkeypatch: pytest.MonkeyPatch,
):
    notes: list[str] = []
    bench = bench_of(tiny())
    monkeypatch.setattr(Bench, "forward", lambda self: notes.append("f"))
    several = [rounds.Taken(Noted(t, notes)) for t in (TEXTBOOK, "a", "b", "c")]  # type: ignore[arg-type]
    several[3].reason = "can't be run"
    rounds.run(bench, several, 3, 2, lambda words: None)
    assert notes == [
        *("f", TEXTBOOK, "f", "a", "f", "b", "f"),
        *("f", "b", "f", "a", "f", TEXTBOOK, "f"),
        *("f", "a", "f", "b", "f"),
    ]
    assert not several[3].samples


def test_a_sample_stands_beside_the_forward_passes_before_and_after_it(
    monkeypatch: pytest.MonkeyPatch,
):
    walls = (1.0, 7.0, 3.0, 8.0, 5.0)  # forward, a, forward, b, forward
    taken = iter([Took(wall, 2 * wall) for wall in walls])
    monkeypatch.setattr(rounds, "timed", lambda work, device: next(taken))
    several = [rounds.Taken(Noted(t, [])) for t in ("a", "b")]  # type: ignore[arg-type]
    rounds.run(bench_of(tiny()), several, 1, 0, lambda words: None)
    (first,), (second,) = (one.samples for one in several)
    assert (first.seconds, first.cpu_seconds) == (7.0, 14.0)
    assert (first.forward_seconds, first.forward_cpu_seconds) == (2.0, 4.0)
    assert (second.seconds, second.forward_seconds) == (8.0, 4.0)


def test_a_method_that_cannot_be_run_says_why_and_the_others_go_on():
    done = child.measure(tiny("mezo:eps=1e30", "mezo"))
    reasons = {s.token: s.reason for s in done.steps if s.token != TEXTBOOK}
    assert reasons["mezo"] is None and "lower lr" in str(reasons["mezo:eps=1e30"])
    assert done.times("mezo:eps=1e30") is None and done.times("mezo") is not None


# -------------------------------------------------------------------------------- what is derived


def step(token: str, seconds: list[float], forwards: int = 2, **changes: object) -> StepTimes:
    samples = [
        StepSample(round=i, seconds=s, cpu_seconds=2 * s, forward_seconds=1.0,
                   forward_cpu_seconds=4.0)
        for i, s in enumerate(seconds)
    ]  # fmt: skip
    fields = {"token": token, "method": "mezo", "forwards": forwards, "samples": samples}
    return StepTimes.model_validate({**fields, **changes})


def test_ratios_are_formed_round_by_round_by_the_forward_passes_needed():
    one = step("mezo", [3.0, 2.0], forwards=2)
    assert one.ratios() == [1.5, 1.0]
    assert one.ratios("cpu") == [0.75, 0.5]


def test_the_textbook_is_compared_in_the_same_round_by_forward_pass(record: StepSpeed):
    theirs, ours = step(TEXTBOOK, [8.0]), step("mezo", [2.0, 1.0])
    other = step("mezo_svrg", [6.0, 1.0], forwards=6)
    made = record.model_copy(update={"steps": [theirs, ours, other]})
    assert made.faster(ours) == [4.0]
    assert made.faster(other) == [4.0]
    assert record.model_copy(update={"steps": [ours]}).faster(ours) == []


def test_the_limit_is_what_memory_takes_for_the_passes(record: StepSpeed):
    one = PassSpeed(name=IN_PLACE, elements=1, moved_bytes=100, seconds=[1.0], cpu_seconds=[1.0])
    declared = {"queries": 2, "backwards": 0, "noise_passes": 4, "state_bytes": 0,
                "scratch_bytes": 0}  # fmt: skip
    made = record.model_copy(update={"passes": [one], "weights_bytes": 10})
    ours = step("mezo", [3.0], declared=declared)
    # 4 passes of 20 bytes at 100 bytes a second beside two forward passes of 1 s
    assert made.limit(ours) == pytest.approx(1 + 4 * 20 / 100 / 2)
    assert made.limit(ours, 2) == pytest.approx(1 + 2 * 20 / 100 / 2)
    first_order = step("ft_sgd", [3.0], declared={**declared, "backwards": 1})
    assert made.limit(first_order) is None
    assert made.model_copy(update={"passes": []}).limit(ours) is None


def test_the_extra_peak_is_beyond_a_forward_pass(record: StepSpeed):
    one = step("mezo", [1.0], peak={"peak_bytes": 30, "outside_bytes": 5})
    assert record.model_copy(update={"forward_peak_bytes": 10}).extra_bytes(one) == 20
    assert record.model_copy(update={"forward_peak_bytes": None}).extra_bytes(one) is None


def test_a_spread_has_median_range_and_quartiles():
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(3.0, 1.0, 5.0, 2.0, 4.0, 5)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 2.0, 2.0, 1)
    assert Spread.of([]) is None


def test_noise_and_memory_are_timed_by_themselves_on_one_tensor():
    made = passes.measure(["gaussian", "rademacher"], "bfloat16", "cpu", MIB)
    assert [p.name for p in made] == ["gaussian", "rademacher", "copy_", IN_PLACE]
    for one in made:
        assert one.elements == MIB // 2 and one.moved_bytes == 2 * MIB
        assert len(one.seconds) == len(one.cpu_seconds) == 9
        assert one.bytes_per_second == pytest.approx(
            4e9 / one.nanoseconds_per_element  # two bytes read, two written
        )


def test_a_record_survives_the_disk_and_a_foreign_one_is_refused(
    record: StepSpeed, tmp_path: Path
):
    path = write_step_speed(tmp_path, record)
    assert path.parent.name == record.key and read_step_speeds(tmp_path) == [record]
    path.write_text('{"kind": "other"}')
    with pytest.raises(UserError, match="no valid record of 'bench step'"):
        read_step_speeds(tmp_path)


def test_another_setting_is_another_record_on_disk():
    assert tiny().key == tiny().key
    assert len({tiny().key, tiny(rounds=3).key, tiny("fzoo").key, tiny(threads=2).key}) == 4
