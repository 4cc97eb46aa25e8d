"""Learning-rate schedules are those of transformers, step by step."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from bench.records import RunSpec
from bench.schedule import rate


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_rates_are_those_of_transformers(name, warmup):
    spec = RunSpec(
        method="mezo", model="m", task="t", steps=12, lr=0.3, lr_schedule=name,
        lr_warmup_steps=warmup,
    )  # fmt: skip
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    known_as = "constant_with_warmup" if name == "constant" else name
    schedule = get_scheduler(known_as, theirs, num_warmup_steps=warmup, num_training_steps=12)
    for step in range(12):
        assert rate(spec, step) == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-12)
        theirs.step()
        schedule.step()
