"""The trajectory file: small, append-only, and never misread."""

from __future__ import annotations

import pytest
import torch

from zo_core import GradientEstimate, Params, Term, Trajectory, derive_seed, directions
from zo_core.trajectory import TrajectoryWriter

LAW = directions.build("rademacher")
BEGUN = Trajectory("mezo", {"eps": 0.01}, 0.5, 1)


def plain(step):
    return GradientEstimate(LAW, (Term(derive_seed(1, step), float(step)),), (1.0, 2.0))


def write(path, steps, then=()):
    with TrajectoryWriter(path, BEGUN) as log:
        for step in range(steps):
            log.append(plain(step), 0.5)
        for estimate, lr in then:
            log.append(estimate, lr)
    return path


def told(path):
    return [(s.terms, s.lr) for s in Trajectory.read(path).steps]


def test_what_is_written_is_read(tmp_path):
    read = Trajectory.read(write(tmp_path / "t", 5))
    assert (read.method, read.options, read.lr, read.run_seed) == ("mezo", {"eps": 0.01}, 0.5, 1)
    assert [s.terms for s in read.steps] == [plain(step).terms for step in range(5)]


def test_twenty_thousand_steps_stay_below_a_tenth_of_a_megabyte(tmp_path):
    assert write(tmp_path / "t", 20_000).stat().st_size < 100_000


MANY = GradientEstimate(LAW, (Term(2**64 - 1, 0.5), Term(7, -1.5)), ())
NONE = GradientEstimate(LAW, (), ())


@pytest.mark.parametrize("odd", [(MANY, 0.5), (plain(2), 0.25), (NONE, 0.5)])
def test_a_step_that_does_not_fit_widens_the_file_and_loses_nothing(tmp_path, odd):
    path = write(tmp_path / "t", 2, [odd, (plain(3), 0.5)])
    wanted = [plain(0), plain(1), odd[0], plain(3)]
    assert told(path) == [
        (e.terms, lr) for e, lr in zip(wanted, [0.5, 0.5, odd[1], 0.5], strict=True)
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize("then", [(), [(MANY, 0.5), (MANY, 0.5)]])
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


@pytest.mark.parametrize("new", [b"trajectory/2", b"trajectory/10"])
def test_another_format_is_refused(tmp_path, new):
    path = write(tmp_path / "t", 2)
    path.write_bytes(path.read_bytes().replace(b"trajectory/1", new))
    with pytest.raises(ValueError, match="Upgrade"):
        Trajectory.read(path)


def test_first_order_runs_have_nothing_to_replay():
    with pytest.raises(ValueError, match="no trajectory"):
        Trajectory("ft_sgd", {}, 0.1, 0).replay_(Params([("w", torch.zeros(2))]))
