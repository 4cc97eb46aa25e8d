"""The words of the engine: what a step is made of, and what each part promises.

Reading order is the order of one step::

    seed -> Estimator.plan -> Perturber, Objective -> losses -> Estimator.estimate
         -> GradientEstimate -> UpdateRule, Write -> theta

Symbols are the papers': ``theta`` the parameters, ``u`` (or ``z``) a random direction, ``eps`` the
perturbation scale, ``lr`` the learning rate, ``c`` the projected gradient (a scalar a direction).

Why the words are cut as they are is told in ``docs/design.md``.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor  # torch's only name for it

Phase = Literal["anchor", "perturb", "forward", "backward", "update"]
"""What the engine can say it is doing. See :data:`Span`."""

Span = Callable[[Phase], AbstractContextManager[object]]
"""The one seam between the engine and whoever measures it: a context opened around each phase."""

Data = Literal["batch", "anchor"]
"""What an objective is evaluated on: this step's minibatch, or the anchor set (SVRG)."""

State = Any
"""What a part keeps between steps; it goes in and comes out, and belongs to that part alone."""

_NOTHING: AbstractContextManager[object] = nullcontext()


def no_span(phase: Phase) -> AbstractContextManager[object]:
    """Listen to no phase; the default of every ``span`` argument, at the cost of one call."""
    return _NOTHING


# --------------------------------------------------------------------------- parameters and seeds


def stable_key(name: str) -> int:
    """Return the 64-bit key of a tensor called ``name``: the same on every machine, for ever."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def derive_seed(seed: int, *path: int | str) -> int:
    """Mix a seed with a path such as ``(step, query)`` into a new 64-bit seed.

    A real hash, so that neighbouring runs, steps and queries share nothing: adding numbers up, as
    published code does, lets (16, 1) and (17, 0) meet. Zero and negative seeds are seeds like any.
    """
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has no values: a tracer of memory passes through."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


@dataclass(frozen=True, eq=False)
class Param:
    """One trainable tensor, and the key under which noise is drawn for it."""

    name: str
    tensor: Tensor
    key: int  # 64 bits, from the name alone: freezing a neighbour does not move this one's noise


class Params(Sequence[Param]):
    """The trainable tensors in a fixed order.

    Names, and so keys, are part of the noise stream: the same names and shapes and the same seed
    give the same directions on any device. A tensor that stands under two names (tied weights)
    is held once, under the first.

    Raises:
        ValueError: no tensor at all, two tensors under one name, a tensor that is not floating
            point or has no elements, or an expanded view. Tensors that share storage in other ways
            are the caller's to avoid: they would be moved twice.

    """

    def __init__(
        self, named: Iterable[tuple[str, Tensor]], module: torch.nn.Module | None = None
    ) -> None:
        """Hold ``named`` (name, tensor) pairs in the order given, and the module they are of."""
        self.module = module
        seen: set[int] = set()
        items: list[Param] = []
        for name, tensor in named:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            _refuse_untrainable(name, tensor)
            items.append(Param(name, tensor, stable_key(name)))
        if not items:
            raise ValueError("Expected at least one trainable tensor, got none.")
        if len({p.key for p in items}) != len(items):
            raise ValueError("Expected distinct tensor names, got a name twice.")
        self._items = tuple(items)

    @classmethod
    def of(cls, module: torch.nn.Module) -> Params:
        """Hold the parameters of ``module`` that require a gradient (frozen ones stay outside)."""
        return cls(((n, p) for n, p in module.named_parameters() if p.requires_grad), module)

    def __getitem__(self, index: Any) -> Any:
        """Return one ``Param``, or a tuple of them for a slice."""
        return self._items[index]

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._items)

    def __iter__(self) -> Iterator[Param]:
        """Walk the tensors in the fixed order."""
        return iter(self._items)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors alone, in order."""
        return tuple(p.tensor for p in self._items)

    @property
    def addresses(self) -> tuple[tuple[int, torch.dtype, torch.Size, bool], ...]:
        """Where plain tensors lie and how: it differs once one is moved, cast or laid out anew."""
        return tuple((t.data_ptr(), t.dtype, t.shape, t.is_contiguous()) for t in self.tensors)

    @property
    def elements(self) -> int:
        """How many numbers are trained."""
        return sum(p.tensor.numel() for p in self._items)

    @property
    def bytes(self) -> int:
        """What they occupy, in bytes."""
        return sum(p.tensor.numel() * p.tensor.element_size() for p in self._items)


def _refuse_untrainable(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(
            f"Tensor '{name}' is {tensor.dtype}; only floating-point tensors can be trained."
        )
    if tensor.numel() == 0:
        raise ValueError(
            f"Tensor '{name}' has no elements (shape {tuple(tensor.shape)}); leave it out."
        )
    if any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True)):
        raise ValueError(f"Tensor '{name}' is an expanded view; call .contiguous() on it first.")


# ------------------------------------------------------------------------------------- objectives


class Objective(Protocol):
    """The scalar to minimise, evaluated at the parameters *as they stand*.

    Calling it again without moving the parameters must give the same value: same minibatch, no
    dropout. It need not be differentiable (minus an accuracy, say) unless a first-order method
    asks: ``differentiable`` says so.
    """

    differentiable: bool

    def __call__(self, data: Data = "batch") -> Tensor:
        """Return the mean over ``data``, shape (), float32 or float64."""
        ...

    def parts(self, data: Data = "batch") -> Sequence[Part]:
        """Return the micro-batches whose weighted mean the objective is."""
        ...

    def tiled(self, copies: int) -> Tensor:
        """Evaluate ``copies`` copies of the minibatch in one forward pass, shape (copies,)."""
        ...


Loss = Callable[[], Tensor]
Part = tuple[float, Loss]
"""A micro-batch: its weight (how many examples), and the function that returns its mean loss."""


class Closure:
    """An objective made of functions without arguments, as in ``torch.optim``.

    Args:
        loss: returns the mean over this step's minibatch, shape (); or its micro-batches, which
            are averaged (by weight) before anything else is done with them.
        anchor: the same over the anchor set, for the methods that ask for one.
        tiled: returns the losses of n copies of the minibatch laid end to end, shape (n,), for
            perturbers that look at several points in one forward pass.
        differentiable: false where ``loss`` is a score without a gradient.

    """

    def __init__(
        self,
        loss: Loss | Sequence[Part],
        anchor: Loss | Sequence[Part] | None = None,
        *,
        tiled: Callable[[int], Tensor] | None = None,
        differentiable: bool = True,
    ) -> None:
        """Wrap ``loss``."""
        self._parts: dict[Data, Sequence[Part]] = {"batch": _parts(loss)}
        if anchor is not None:
            self._parts["anchor"] = _parts(anchor)
        self._tiled = tiled
        self.differentiable = differentiable

    def __call__(self, data: Data = "batch") -> Tensor:
        """Evaluate on ``data``.

        Raises:
            ValueError: no anchor set was given, or a part's loss is not one number.

        """
        parts = self.parts(data)
        if len(parts) == 1:
            return _single(parts[0][1]())
        total = sum(weight for weight, _ in parts)
        # Checked one by one: the sum of a loss an example would pass for a mean.
        means = [_single(loss()).reshape(()).double() * (w / total) for w, loss in parts]
        return torch.stack(means).sum()

    def parts(self, data: Data = "batch") -> Sequence[Part]:
        """Return the micro-batches of ``data``; ValueError where no anchor set was given."""
        if data not in self._parts:
            raise ValueError("This method evaluates an anchor set; pass Closure(..., anchor=...).")
        return self._parts[data]

    def tiled(self, copies: int) -> Tensor:
        """Evaluate ``copies`` copies at once; ValueError where that was not given."""
        if self._tiled is None:
            raise ValueError("This method tiles the minibatch; pass Closure(..., tiled=...).")
        return self._tiled(copies)


def _parts(loss: Loss | Sequence[Part]) -> Sequence[Part]:
    return [(1.0, loss)] if callable(loss) else loss


class Unsupported(ValueError):
    """What was asked for can't be done with these weights, this objective, device or library.

    The message says what can be done instead. To a harness it is a result, not a failure.
    """


class NonFiniteLoss(ArithmeticError):
    """A loss came out as NaN or infinity. It is raised, never averaged away or shown as zero."""


def finite(loss: Tensor, what: str = "loss") -> float:
    """Return ``loss``, shape (), as a float; ``what`` it is, an error says.

    Raises:
        NonFiniteLoss: it is NaN or infinite.
        ValueError: it is not one number.

    """
    value = float(_single(loss))
    if not math.isfinite(value):
        raise NonFiniteLoss(
            f"The {what} is {value}. The run diverged: lower lr, or eps, or use a wider dtype."
        )
    return value


def _single(loss: Tensor) -> Tensor:
    """Refuse what is not one number; by its shape, so that no device is waited for."""
    if loss.numel() != 1:
        raise ValueError(
            f"Expected a loss of shape (), got {tuple(loss.shape)}; average it first."
        )
    return loss


def coefficient(value: float) -> float:
    """Round a projected gradient to float32, so that a log of four bytes loses nothing.

    Raises:
        NonFiniteLoss: it is NaN or infinite.

    """
    c = float32(value)
    if not math.isfinite(c):
        raise NonFiniteLoss(
            f"The projected gradient is {value}: the losses differ too much, or eps is too small."
        )
    return c


# --------------------------------------------------------------------------- directions, estimates


@dataclass(frozen=True)
class Term:
    """``coefficient`` times the direction of ``seed``."""

    seed: int
    coefficient: float


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of one tensor that is worked on at a time; scratch is of this size alone."""

    param: Param
    part: Tensor  # (n,) flat view: elements first .. first + n - 1 in row-major order
    first: int

    @property
    def wide(self) -> torch.dtype:
        """The dtype that sums are formed in: float64 for float64 weights, else float32."""
        return torch.float64 if self.part.dtype == torch.float64 else torch.float32


Copies = tuple[Piece, Sequence[Tensor]]
"""A piece, and where its one or two perturbed copies are written."""


class Distribution(Protocol):
    """A law of random directions ``u``.

    A frozen value. A direction is (distribution, seed) and is never stored as a tensor. Those
    of ``zo_core/directions`` with a name have E[u u^T] = I; the others are made of them.
    """

    law: str | None = None
    """The noise kernel's name of it, where an entry is one number of that kernel, no more."""

    lasting: bool = False
    """Whether what ``prepared`` returns may be kept from step to step: it holds weights, where
    they are written, and a few numbers, and distributions that are equal write the same."""

    @property
    def name(self) -> str:
        """Name, as in records and on plots."""
        ...

    def draw(self, piece: Piece, terms: Sequence[Term]) -> Tensor:
        """Return ``sum_k coefficient_k u(seed_k)`` for one piece, shape (n,), dtype ``wide``.

        The result is the caller's to change.
        """
        ...

    def add_(self, params: Sequence[Param], terms: Sequence[Term]) -> None:
        """Add ``sum_k coefficient_k u(seed_k)`` to ``params`` in one pass over the weights.

        The sum is formed in float32 (float64 for float64 weights) and rounded to the weights'
        dtype once. Costs one noise pass a term, and scratch that does not grow with the model.
        """
        ...

    def write(self, piece: Piece, outs: Sequence[Tensor], terms: Sequence[Term]) -> None:
        """Write ``piece`` plus ``sum_k coefficient_k u(seed_k)`` elsewhere; same bits as ``add_``.

        Where ``outs`` is two, the second gets ``piece`` minus the sum, of the same draw. The piece
        has values (is no fake), and is of any length: whole rows, or a whole tensor. ``outs`` are
        (n,) of its dtype, contiguous, and apart from it. Others than this default need no scratch
        of that length.
        """
        change = self.draw(piece, terms)
        for out in outs:
            out.copy_(change + piece.part)
            change.neg_()  # x - y is x + (-y), to the bit

    def prepared(self, writes: Sequence[Copies]) -> Callable[[Sequence[Term]], None]:
        """Return what does as ``write`` for many pieces, along given terms, as often as wanted.

        Those with a kernel are written in one call of it.
        """

        def write(terms: Sequence[Term]) -> None:
            for piece, outs in writes:
                self.write(piece, outs, terms)

        return write

    def write_rows(
        self, param: Param, rows: Tensor, outs: Sequence[Tensor], terms: Sequence[Term]
    ) -> None:
        """Do as ``write`` for ``rows``, (k,) int64, of a matrix (m, n); ``outs`` are (k, n).

        In any order, repeated or not: what an embedding looks up.
        """
        for place, row in enumerate(rows.tolist()):
            piece = Piece(param, param.tensor.detach()[row], row * param.tensor.shape[1])
            self.write(piece, [out[place] for out in outs], terms)


def merge(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Add up the coefficients of equal seeds, and drop what cancels to zero."""
    total: dict[int, float] = {}
    for t in terms:
        total[t.seed] = total.get(t.seed, 0.0) + t.coefficient
    return tuple(Term(s, c) for s, c in total.items() if c != 0.0)


def scaled(terms: Iterable[Term], by: float) -> tuple[Term, ...]:
    """Multiply every coefficient."""
    return tuple(Term(t.seed, by * t.coefficient) for t in terms)


@dataclass(frozen=True)
class GradientEstimate:
    """A whole zeroth-order gradient as a value: ``g = sum_k c_k u(seed_k)``.

    A few numbers: it can be logged, sent over a wire, and replayed. Coefficients and ``extra`` are
    exactly representable in float32, so that a log of four bytes each loses nothing.
    """

    distribution: Distribution
    terms: tuple[Term, ...]
    losses: tuple[float, ...] = ()  # in the order seen; of *perturbed* points, not of theta
    extra: tuple[float, ...] = ()  # what else the estimator's next state hangs on
    rate: float = 1.0  # what lr is multiplied by in this step

    def __post_init__(self) -> None:
        """Refuse numbers that a float32 log would change."""
        for number in (*(t.coefficient for t in self.terms), *self.extra):
            if number != float32(number):
                raise ValueError(f"{number!r} in an estimate is not a float32 number.")


def float32(value: float) -> float:
    """Round to the nearest float32 number."""
    return (
        struct.unpack("<f", struct.pack("<f", value))[0] if abs(value) < 1e38 else _wide32(value)
    )


def _wide32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))  # struct refuses what overflows


# ------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class Cost:
    """What a part declares that one step costs on given parameters. Planners add it up.

    Bytes are those beside the parameters and the objective's own activations.
    """

    queries: int = 0  # evaluations of the objective; a first-order step has one
    backwards: int = 0  # backward passes
    noise_passes: int = 0  # times that noise is generated for every trained entry
    state_bytes: int = 0  # kept between steps
    scratch_bytes: int = 0  # at most alive during a step: gradients, temporaries

    def __add__(self, other: Cost) -> Cost:
        """Add two parts of one step that run in turn: scratch is the larger of the two."""
        return Cost(
            self.queries + other.queries,
            self.backwards + other.backwards,
            self.noise_passes + other.noise_passes,
            self.state_bytes + other.state_bytes,
            max(self.scratch_bytes, other.scratch_bytes),
        )


Point = Sequence[Term]
"""A place to look from: theta plus a short sum of directions. The empty point is theta itself."""


Moved = Point | None
"""What an update added to theta, as terms; None where it is not a sum of the step's directions."""


@dataclass(frozen=True)
class Look:
    """Points to evaluate the objective at, one after the other, along one distribution."""

    distribution: Distribution
    points: tuple[Point, ...]
    data: Data = "batch"
    at: Sequence[Tensor] | None = None  # look from these values, one a parameter; None: theta


@dataclass(frozen=True)
class Plan:
    """What a step will look at, fixed from the unperturbed weights before the first look."""

    distribution: Distribution  # that the estimate will be along
    looks: tuple[Look, ...]
    note: Any = None  # what the estimator tells itself

    @property
    def queries(self) -> int:
        """How many evaluations of the objective this is."""
        return sum(len(look.points) for look in self.looks)


@dataclass(frozen=True)
class Away:
    """Theta stands away from itself, since an update is to take it back in its own pass."""

    distribution: Distribution
    back: Point  # what takes it back


class Perturber(Protocol):
    """How ``theta + sum c u`` comes to be while an objective looks at it."""

    @property
    def exact(self) -> bool:
        """Whether theta comes back to the same bits."""
        ...

    @property
    def staying(self) -> Perturber | None:
        """The same perturber, but one that leaves theta at a look's last point.

        Whoever asks for it goes back from there (:class:`Away`). It puts theta back where a look
        raises, and its ``cost`` is without the way back. None: theta is never elsewhere.
        """
        ...

    def losses(
        self, params: Params, objective: Objective, look: Look, span: Span = no_span
    ) -> list[float]:
        """Return the objective at each point, in order; theta is left as found (up to drift).

        Theta is put back when the objective raises as well.

        Raises:
            NonFiniteLoss: an evaluation was NaN or infinite.

        """
        ...

    def retrace_(self, params: Params, look: Look) -> None:
        """Do to ``params`` what ``losses`` does, roundings and all, without looking."""
        ...

    def cost(self, params: Params, points: Sequence[Point], data: Data = "batch") -> Cost:
        """Declare the cost of looking at ``points`` on ``data``, without allocating."""
        ...


class Estimator(Protocol):
    """Decides where to look, and makes a gradient estimate of what was seen.

    It never touches theta. Its state after a step is a function of the weights, the plan and the
    estimate alone, so a trajectory brings it back.
    """

    @property
    def walks_back(self) -> bool:
        """Whether ``moved`` must be told every move of theta as terms."""
        return False

    @property
    def reads_weights(self) -> bool:
        """Whether directions are computed from the weights where they are added.

        Such weights must be unperturbed there, so an exact perturber is needed.
        """
        return False

    @property
    def needs_theta_back(self) -> bool:
        """Whether theta must be back, in a pass of its own, before ``advance`` and the update.

        So it is where ``advance`` reads the weights or changes what directions are made of, and
        where the last look is from elsewhere (``Look.at``) or along another distribution than the
        estimate. Otherwise the way back may be a part of the update's pass.
        """
        return False

    @property
    def freezes_entries(self) -> bool:
        """Whether it leaves entries out, which then must stay bit for bit."""
        return False

    def trained_entries(self, params: Params, state: State) -> int:
        """Count the entries that the mask of ``state`` lets move; all by default."""
        return params.elements

    def init(self, params: Params) -> State:
        """Return the state before the first step; nothing by default."""
        return None

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Fix what the step of ``seed`` looks at, from the weights as they stand unperturbed."""
        ...

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return the estimate, from the losses in the order of the plan's points."""
        ...

    def advance(
        self, params: Params, plan: Plan, estimate: GradientEstimate, state: State
    ) -> State:
        """Return the next state; called after the looks and before the update.

        Theta is itself here if ``needs_theta_back``, else maybe where the last look left it.
        """
        return state

    def moved(self, state: State, by: Moved) -> State:
        """Take note of how the update moved theta (an anchor walks back along it)."""
        return state

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """Declare the cost of one estimate (the dearest), without allocating."""
        ...


class Write(Protocol):
    """How changes land in the weights: rounding and weight decay. See ``zo_core.writing``."""

    def terms_(self, params: Params, distribution: Distribution, terms: Sequence[Term]) -> None:
        """Add ``sum_k c_k u(seed_k)`` to ``params``."""
        ...

    def piece_(self, piece: Piece, change: Tensor) -> None:
        """Add ``change``, (n,) of dtype ``wide``, to one piece; it may be overwritten."""
        ...


class UpdateRule(Protocol):
    """Moves theta along an estimate."""

    linear: bool = False
    """Whether it moves theta by a sum of the estimate's own terms, and says so."""

    in_terms: bool = False
    """Whether it reads no weights, and all that it writes is one call of ``write.terms_`` along
    the estimate's distribution (or every piece once). Then theta's way back can be a part of it.
    """

    def init(self, params: Params) -> State:
        """Return the state before the first step; nothing by default."""
        return None

    def apply_(
        self, params: Params, estimate: GradientEstimate, state: State, lr: float, write: Write
    ) -> tuple[State, Moved]:
        """Change ``params`` in place through ``write``; return the next state and the move."""
        ...

    def cost(self, params: Params) -> Cost:
        """Declare the cost of one update, without allocating."""
        ...


@dataclass(frozen=True)
class StepInfo:
    """What one step saw and did."""

    losses: tuple[float, ...]
    queries: int  # equals the calls of the objective
    backwards: int = 0
    estimate: GradientEstimate | None = None  # None for a first-order step
    lr: float = 0.0  # the rate the update was made with


class Method(Protocol):
    """One way to fine-tune, named as in its paper; a file of ``zo_core/methods``."""

    @property
    def needs_gradient(self) -> bool:
        """Whether the objective is run with autograd, in training mode."""
        ...

    def init(self, params: Params) -> State:
        """Return the state before the first step; it allocates no more than ``cost`` declares."""
        ...

    def step_(
        self,
        params: Params,
        objective: Objective,
        state: State,
        *,
        seed: int,
        lr: float,
        span: Span = no_span,
    ) -> tuple[State, StepInfo]:
        """Take one step in place. ``seed`` decides everything random about it."""
        ...

    def cost(self, params: Params) -> Cost:
        """Declare the cost of a step on ``params``, without allocating."""
        ...


@runtime_checkable
class Replayable(Method, Protocol):
    """A zeroth-order method: its steps can be taken again from their estimates alone."""

    def configured(self, **options: Any) -> Method:
        """Return the method with other ``Settings``."""
        ...

    def replay_(
        self,
        params: Params,
        terms: Sequence[Term],
        state: State,
        *,
        seed: int,
        lr: float,
        extra: Sequence[float] = (),
        retrace: bool = False,
    ) -> State:
        """Take a step again; see ``ZerothOrder.replay_``."""
        ...
