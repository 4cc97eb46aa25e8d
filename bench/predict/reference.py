"""The step that the papers' released code takes, for comparison with what the papers printed.

Our own step takes less: it perturbs in place in pieces, asks for the logits a piece at a time,
and fuses its optimisers. A published number is of the other code, so it is compared with a trace
of that: eager attention, the logits of all tokens at once, and

* ``mezo``: ``bench.stepping.textbook``, three temporaries of the largest tensor;
* ``inference``: one forward pass;
* ``ft_adam``: ``torch.optim.AdamW`` in its default on a GPU (foreach), dropout as the model has
  it, 16-bit autocast where the run asks for it;
* ``ft_sgd``: plain SGD, foreach and dropout too;
* ``mezo_svrg``: MeZO, and beside the weights a snapshot and an anchor's gradient, both dense;
* ``sparse_mezo``: MeZO, and a mask in the weights' dtype for every weight.

Transformers of today, not of 2023: logits are brought to float32 for the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from bench import models
from bench.models import LoadedModel
from bench.objective import precision
from bench.predict.parallel_laid import Lay
from bench.predict.trace import Phases
from bench.records import ModelFacts, RunSpec
from bench.stepping import textbook

KINDS = ("mezo", "inference", "ft_adam", "ft_sgd", "mezo_svrg", "sparse_mezo")

_COPIES = {"mezo_svrg": 2, "sparse_mezo": 1}
"""Dense tensors of the weights' shape and dtype that a ZO method keeps beside them."""


class Run(Protocol):
    """What stands in the place of ``bench.predict.trace.run``."""

    def __call__(
        self,
        spec: RunSpec,
        phases: Phases,
        *,
        steps: int,
        evaluated: bool = True,
        lay: Lay | None = None,
    ) -> None:
        """Load and train."""


def run_of(kind: str, built: list[ModelFacts]) -> Run:
    """Return what takes the steps of a kind; it tells the model's facts to ``built``."""

    def run(
        spec: RunSpec,
        phases: Phases,
        *,
        steps: int,
        evaluated: bool = True,
        lay: Lay | None = None,
    ) -> None:
        def load() -> LoadedModel:
            return models.load(spec.model, dtype=spec.dtype, device="cpu", seed=0)

        with phases.span("load"):
            loaded = load() if lay is None else lay(load)
            params = list(loaded.module.parameters())
            phases.relabel([*params, *loaded.module.buffers()], "weights")
            kept = [torch.empty_like(p) for p in params for _ in range(_COPIES.get(kind, 0))]
        loaded.module.train(kind.startswith("ft"))  # whose dropout keeps masks
        built.append(loaded.facts)
        phases.built(loaded.module)
        phases.relabel(kept, "state")
        step = _step(kind, spec, loaded.module, params, phases)
        for _ in range(min(steps, spec.steps)):
            with phases.span("train"):
                step()

    return run


def _step(
    kind: str, spec: RunSpec, module: Any, params: Sequence[Tensor], phases: Phases
) -> Callable[[], None]:
    ids = torch.zeros((spec.batch_size, spec.seq_len), dtype=torch.int64)

    def loss() -> Tensor:
        phases.relabel(params, "weights")  # the textbook puts them into new tensors
        with phases.span("forward"), precision(spec):
            value: Tensor = module(input_ids=ids, labels=ids, use_cache=False).loss
            return value

    def forward() -> None:
        with torch.inference_mode():
            loss()

    def zeroth() -> None:
        with phases.span("perturb"):
            textbook.step_(params, loss, seed=0, lr=1e-6, eps=1e-3)

    if kind == "inference":
        return forward
    return _first(kind, params, loss, phases) if kind.startswith("ft") else zeroth


def _first(
    kind: str, params: Sequence[Tensor], loss: Callable[[], Tensor], phases: Phases
) -> Callable[[], None]:
    kinds: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "ft_adam": lambda: torch.optim.AdamW(params, lr=1e-6, foreach=True),
        "ft_sgd": lambda: torch.optim.SGD(params, lr=1e-6, foreach=True),
    }
    optimiser = kinds[kind]()

    def step() -> None:
        value = loss()
        with phases.span("backward"):
            value.backward()  # type: ignore[no-untyped-call]
        phases.relabel([p.grad for p in params if p.grad is not None], "gradients")
        with phases.span("update"):
            optimiser.step()
        state = [v for s in optimiser.state.values() for v in s.values()]
        phases.relabel([v for v in state if isinstance(v, Tensor)], "state")
        optimiser.zero_grad(set_to_none=True)

    return step
