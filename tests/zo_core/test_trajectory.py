"""The trajectory file: small, append-only, and never misread."""

from __future__ import annotations

import json

import pytest
import torch

from zo_core import (
    GradientEstimate,
    Params,
    StepInfo,
    Term,
    Trajectory,
    derive_seed,
    directions,
    methods,
)
from zo_core.trajectory import Step, TrajectoryWriter

LAW = directions.build("rademacher")
BEGUN = Trajectory("mezo", {"eps": 0.01}, 0.5, 1)


def logged(*terms, lr=0.5, extra=()):
    estimate = GradientEstimate(LAW, terms, (1.0, 2.0), extra)
    return StepInfo((1.0, 2.0), 2, estimate=estimate, lr=lr)


def plain(step, lr=0.5):
    return logged(Term(derive_seed(1, step), float(step)), lr=lr)


def write(path, steps, then=(), begun=BEGUN):
    with TrajectoryWriter(path, begun) as log:
        for step in range(len(begun.steps), steps):
            log.append(plain(step))
        for info in then:
            log.append(info)
    return path


def told(path):
    return [(s.terms, s.lr, s.extra) for s in Trajectory.read(path).steps]


def as_told(*infos):
    return [(i.estimate.terms, i.lr, i.estimate.extra) for i in infos]


def test_what_is_written_is_read(tmp_path):
    read = Trajectory.read(write(tmp_path / "t", 5))
    assert (read.method, read.options, read.lr, read.run_seed) == ("mezo", {"eps": 0.01}, 0.5, 1)
    assert told(tmp_path / "t") == as_told(*map(plain, range(5)))


def test_twenty_thousand_steps_stay_below_a_tenth_of_a_megabyte(tmp_path):
    assert write(tmp_path / "t", 20_000).stat().st_size < 100_000


MANY = logged(Term(2**64 - 1, 0.5), Term(7, -1.5), extra=(0.25, -3.0))
NONE = logged()
EXTRA = logged(Term(derive_seed(1, 2), 2.0), extra=(0.125,))


@pytest.mark.parametrize("odd", [MANY, plain(2, lr=0.25), NONE, EXTRA])
def test_a_step_that_does_not_fit_widens_the_file_and_loses_nothing(tmp_path, odd):
    path = write(tmp_path / "t", 2, [odd, plain(3)])
    assert told(path) == as_told(plain(0), plain(1), odd, plain(3))
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize("odd", [plain(2), MANY])
def test_a_writer_goes_on_from_what_was_read(tmp_path, odd):
    path = write(tmp_path / "t", 2, [odd])
    write(path, 5, begun=Trajectory.read(path))
    assert told(path) == as_told(plain(0), plain(1), odd, plain(3), plain(4))


def test_a_first_order_step_is_refused(tmp_path):
    with (
        TrajectoryWriter(tmp_path / "t", BEGUN) as log,
        pytest.raises(ValueError, match="no estimate to log"),
    ):
        log.append(StepInfo((1.0,), 1))


@pytest.mark.parametrize("then", [(), [MANY, MANY]])
def test_a_torn_last_record_loses_that_record_alone(tmp_path, then):
    path = write(tmp_path / "t", 5, then)
    whole = told(path)
    for cut in (1, 2, 3):
        path.write_bytes(path.read_bytes()[:-1])
        assert told(path) == whole[:-1], cut


@pytest.mark.parametrize("body", [b"", b"hello\n", b"[1]\n", b"{}\n", b"no newline"])
def test_other_files_are_refused(tmp_path, body):
    path = tmp_path / "t"
    path.write_bytes(body)
    with pytest.raises(ValueError, match="not a trajectory"):
        Trajectory.read(path)


@pytest.mark.parametrize("more", [{"colour": "red"}, {"steps": []}, {"lr": None}])
def test_a_header_with_other_keys_is_refused(tmp_path, more):
    path = write(tmp_path / "t", 2)
    head, _, body = path.read_bytes().partition(b"\n")
    header = {**json.loads(head), **more}
    header = {key: value for key, value in header.items() if value is not None}
    path.write_bytes(json.dumps(header).encode() + b"\n" + body)
    with pytest.raises(ValueError, match="not a trajectory file: expected lr, method, options, r"):
        Trajectory.read(path)


def test_a_replay_takes_over_the_state_that_it_is_given(monkeypatch):
    method, seed = methods.build("mezo_momentum"), derive_seed(1, 0)
    steps = (Step((Term(seed, 2.0),), 0.5),)
    begun = Trajectory("mezo_momentum", {}, 0.5, 1, steps)
    ours, theirs = (Params([("w", torch.ones(50))]) for _ in range(2))
    own = method.init(ours)
    own[1][ours[0].key].fill_(3.0)
    expected = method.init(theirs)
    expected[1][theirs[0].key].fill_(3.0)
    method.replay_(theirs, steps[0].terms, expected, seed=seed, lr=0.5)
    monkeypatch.setattr(type(method), "init", lambda *_: pytest.fail("a second state"))
    assert begun.replay_(ours, state=own)[1] is own[1]
    assert torch.equal(ours[0].tensor, theirs[0].tensor)


@pytest.mark.parametrize("new", [b"trajectory/1", b"trajectory/20"])
def test_another_format_is_refused(tmp_path, new):
    path = write(tmp_path / "t", 2)
    path.write_bytes(path.read_bytes().replace(b"trajectory/2", new))
    with pytest.raises(ValueError, match="another noise stream"):
        Trajectory.read(path)


def test_first_order_runs_have_nothing_to_replay():
    with pytest.raises(ValueError, match="no trajectory"):
        Trajectory("ft_sgd", {}, 0.1, 0).replay_(Params([("w", torch.zeros(2))]))
