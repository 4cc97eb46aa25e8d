"""The trajectory file: small, append-only, and never misread."""

from __future__ import annotations

import pytest
import torch

from zo_core import GradientEstimate, Params, Term, Trajectory, derive_seed, directions
from zo_core.trajectory import TrajectoryWriter


def write(path, steps, run_seed=1):
    law = directions.build("rademacher")
    with TrajectoryWriter(path, Trajectory("mezo", {"eps": 0.01}, 0.5, run_seed)) as log:
        for step in range(steps):
            term = Term(derive_seed(run_seed, step), float(step))
            log.append(GradientEstimate(law, (term,), (1.0, 2.0)))
    return path


def test_what_is_written_is_read(tmp_path):
    read = Trajectory.read(write(tmp_path / "t", 5))
    assert (read.method, read.options, read.lr, read.run_seed) == ("mezo", {"eps": 0.01}, 0.5, 1)
    assert read.coefficients == (0.0, 1.0, 2.0, 3.0, 4.0)
    assert [t.seed for t in read] == [derive_seed(1, s) for s in range(5)]


def test_twenty_thousand_steps_stay_below_a_tenth_of_a_megabyte(tmp_path):
    assert write(tmp_path / "t", 20_000).stat().st_size < 100_000


def test_a_torn_last_record_loses_that_record_alone(tmp_path):
    path = write(tmp_path / "t", 5)
    path.write_bytes(path.read_bytes()[:-3])
    assert Trajectory.read(path).coefficients == (0.0, 1.0, 2.0, 3.0)


@pytest.mark.parametrize("body", [b"", b"hello\n", b"[1]\n", b"{}\n", b"no newline"])
def test_other_files_are_refused(tmp_path, body):
    path = tmp_path / "t"
    path.write_bytes(body)
    with pytest.raises(ValueError, match="not a trajectory"):
        Trajectory.read(path)


def test_another_format_is_refused(tmp_path):
    path = write(tmp_path / "t", 2)
    path.write_bytes(path.read_bytes().replace(b"trajectory/1", b"trajectory/2"))
    with pytest.raises(ValueError, match="Upgrade"):
        Trajectory.read(path)


def test_a_step_of_another_seed_is_refused(tmp_path):
    with TrajectoryWriter(tmp_path / "t", Trajectory("mezo", {}, 0.5, 1)) as log:
        estimate = GradientEstimate(directions.build("gaussian"), (Term(4, 1.0),), ())
        with pytest.raises(ValueError, match="does not fit"):
            log.append(estimate)


def test_first_order_runs_have_nothing_to_replay():
    with pytest.raises(ValueError, match="no trajectory"):
        Trajectory("ft_sgd", {}, 0.1, 0).replay_(Params([("w", torch.zeros(2))]))
