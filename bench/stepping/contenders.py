"""What is timed: a forward pass, the textbook step, and each method's own step, on one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.built import Built
from bench.objective import Seen, objective
from bench.records import Declared, RunSpec
from bench.records.spec import Option
from bench.records.step_speed import TEXTBOOK, StepCase
from bench.stepping import textbook
from bench.stepping.cases import method, parse
from bench.stepping.peak import forward_pass
from bench.tasks import Batch
from zo_core import Closure, Method, Params, derive_seed, methods, register

_PERIODS = ("period", "refresh")
"""Options that say after how many steps a method repeats itself."""
_EPS = 1e-3


@dataclass
class Bench:
    """The model and the minibatch that all steps are taken on."""

    spec: RunSpec
    built: Built
    batch: Batch
    seen: Seen = field(default_factory=Seen)

    @classmethod
    def of(cls, spec: RunSpec, built: Built) -> Bench:
        """Take the first minibatch of the run, for good."""
        return cls(spec, built, built.task.batch(0))

    def closure(self) -> Closure:
        """Return the objective of a step, as a run has it, its forward passes marked."""
        made = objective(self.spec, self.built.task, self.built.module, self.batch, self.seen)
        mark = self._marked
        return Closure(
            [(weight, mark(loss)) for weight, loss in made.parts()],
            [(weight, mark(loss)) for weight, loss in made.parts("anchor")],
            tiled=lambda copies: mark(lambda: made.tiled(copies))(),
            differentiable=made.differentiable,
        )

    def forward(self) -> None:
        """Evaluate the minibatch once, in inference mode."""
        self.built.module.eval()
        looked_at = self.closure()
        with torch.inference_mode():
            float(looked_at())

    def _marked(self, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def marked() -> Tensor:
            with forward_pass(self.spec.device):
                return loss()

        return marked


class Contender(Protocol):
    """A step that can be taken again and again."""

    token: str
    name: str
    options: dict[str, Option]
    distribution: str | None
    steps: int
    idle_updates: int

    def take(self) -> None:
        """Take the steps of one sample."""

    @property
    def declared(self) -> Declared:
        """What one step costs, as declared."""


class Textbook:
    """The step of the paper's formula."""

    token = TEXTBOOK
    name = "mezo"
    distribution: str | None = "gaussian"
    steps = 1
    idle_updates = 0

    def __init__(self, bench: Bench) -> None:
        """Take its steps on ``bench``."""
        self.options: dict[str, Option] = {"eps": _EPS}
        self._bench, self._taken = bench, 0

    def take(self) -> None:
        """Take one step."""
        bench = self._bench
        bench.built.module.eval()
        seed = derive_seed(bench.spec.seed, self.token, self._taken) % 2**63
        with torch.no_grad():
            textbook.step_(
                bench.built.params.tensors, bench.closure(), seed=seed, lr=bench.spec.lr, eps=_EPS
            )
        self._taken += 1

    @property
    def declared(self) -> Declared:
        """Three temporaries of the largest tensor."""
        largest = max(t.numel() * t.element_size() for t in self._bench.built.params.tensors)
        return Declared(
            queries=textbook.QUERIES,
            backwards=0,
            noise_passes=textbook.NOISE_PASSES,
            state_bytes=0,
            scratch_bytes=3 * largest,
        )


class Ours:
    """A method of the engine, with its own state."""

    def __init__(self, bench: Bench, token: str) -> None:
        """Build the method of ``token``; its state is allocated now."""
        self.token = token
        self.name, self.options = parse(token)
        self._method: Method = method(token)
        self._bench, self._taken = bench, 0
        known = {**_defaults(self.name), **self.options}
        named = known.get("distribution")
        self.distribution = str(named) if named else None
        self.steps = max([1, *(int(known[key]) for key in _PERIODS if key in known)])
        self.idle_updates = 0
        # Its own, as in a run: what is found out about weights once is kept by them.
        shared = bench.built.params
        self._params = Params(((p.name, p.tensor) for p in shared), shared.module)
        self._state = self._method.init(self._params)

    def take(self) -> None:
        """Take as many steps as the method takes to repeat itself."""
        for _ in range(self.steps):
            self._step()

    def _step(self) -> None:
        bench, built = self._bench, self._bench.built
        built.module.train(self._method.needs_gradient)
        self._state, info = self._method.step_(
            self._params,
            bench.closure(),
            self._state,
            seed=derive_seed(bench.spec.seed, self.token, self._taken),
            lr=bench.spec.lr,
        )
        self._taken += 1
        if info.estimate is not None:
            terms = info.estimate.terms
            self.idle_updates += not terms or any(t.coefficient == 0 for t in terms)

    @property
    def declared(self) -> Declared:
        """As the method says."""
        return Declared(**vars(self._method.cost(self._params)))


def of(bench: Bench, case: StepCase) -> list[Contender]:
    """Return the textbook step, if it is wanted, and every method of the case."""
    ours: list[Contender] = [Ours(bench, token) for token in case.methods]
    return [Textbook(bench), *ours] if case.textbook_rounds else ours


def _defaults(name: str) -> dict[str, Any]:
    return register.defaults(register.modules(methods)[name].method)
