"""The values of a task: examples and prompts as people write them, batches as models take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Protocol

from bench.records import TaskFacts
from bench.records.spec import Objective

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Example:
    """One text with its class, its options, or its answers."""

    text: str
    """``{text}`` in prompts: the one part that is cut where a question is too long."""
    label: int = 0
    """The class, or the right one of ``options``, counted from 0."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Other parts, by their names in prompts: a question, a hypothesis. Never cut."""
    options: tuple[str, ...] = ()
    """Multiple choice: what may follow the prompt, each with its leading space."""
    answers: tuple[str, ...] = ()
    """Generation: every answer that counts as right; the first is the one trained on."""


@dataclass(frozen=True)
class Examples:
    """The data of a task, the same for every seed."""

    train: Sequence[Example]
    """A run trains on the first ``train_examples`` of them."""
    heldback: Sequence[Example]
    """A run is evaluated on the first ``eval_examples`` of them: shuffle before."""
    source: str
    """Where the rows came from, with version."""
    note: str | None = None
    """What a reader must know, such as the licence."""


@dataclass(frozen=True)
class Prompt:
    """How a text becomes a question, and which words answer it."""

    causal: str
    """``{text}``, other fields and words; the model continues. Ends without a space."""
    words: tuple[str, ...] = ()
    """The answer of each class, with its leading space or newline; for the objective
    ``label_words`` one token each. None where examples hold their own options or answers."""
    masked: str | None = None
    """The same for masked models, with ``{mask}`` for the answer (and its leading space)."""


@dataclass(frozen=True)
class TaskFile:
    """What a task file with texts says, besides its examples."""

    prompts: Mapping[str, Prompt]
    default_prompt: str
    objectives: Sequence[Objective]
    """How its examples may become a loss; the first that suits the model is the default."""
    head: Sequence[str]
    """What a classification head reads: ``text`` and fields, one or a pair."""


@dataclass(frozen=True)
class Batch:
    """A minibatch on the model's device: B examples, R sequences of T tokens, C classes.

    R is B, or B * C where each option is a sequence of its own (then option by option, example
    by example). A answers may be asked of each sequence: the options that share it.
    """

    examples: tuple[int, ...]
    """Index of each example in the train (or the held-back) set."""
    input_ids: Tensor  # (R, T) int64
    targets: Tensor  # (B,) int64 class; or (B, T) int64 token, -100 where none is asked
    attention_mask: Tensor | None = None  # (R, T) int64, 0 at padding; None: nothing is padded
    position_ids: Tensor | None = None  # (R, T) int64; None: 0, 1, 2, ...
    answer_at: Tensor | None = None  # (R,) int64 place of the mask token; None: the last place
    answers: Tensor | None = None  # (R * A, K) int64 token after each of the last K; -100: none
    candidates: Tensor | None = None  # (C,) int64 token of each class

    def part(self, start: int, stop: int) -> Batch:
        """Return the examples from ``start`` to ``stop``, exclusive: views, padded as here."""
        b = len(self.examples)
        return self._with_rows(
            self.examples[start:stop],
            lambda t: t[start * (t.shape[0] // b) : stop * (t.shape[0] // b)],
        )

    def tiled(self, n: int) -> Batch:
        """Return all rows ``n`` times: the whole batch, then the whole batch again."""
        return self._with_rows(self.examples * n, lambda t: t.repeat(n, *(1 for _ in t.shape[1:])))

    def _with_rows(self, examples: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Batch:
        rows = {f.name: getattr(self, f.name) for f in fields(self)}
        del rows["examples"], rows["candidates"]
        changed = {k: change(t) for k, t in rows.items() if t is not None}
        return replace(self, examples=examples, **changed)


@dataclass(frozen=True)
class Evaluated:
    """The result on the held-back examples."""

    n: int
    correct: int
    """Examples answered rightly: the class, the option, or (generation) an exact match."""
    loss: float
    """Mean cross-entropy in nats: over the classes or options; generation: per answer token."""
    predictions: list[int]
    """Predicted class or option of each held-back example, in their order; generation: none."""
    scores: list[float] | None = None
    """Generation: token F1 of each held-back example, in their order."""


class Task(Protocol):
    """What the harness asks of a task. Global random streams are never touched."""

    @property
    def facts(self) -> TaskFacts:
        """What was really asked, for the record."""

    def batch(self, step: int) -> Batch:
        """Return the minibatch of training step ``step``, counted from 0.

        A function of (spec.seed, step) alone: the same for every method, and at a resumed step.
        Every epoch is a new order of the train set; what is left at its end, being less than a
        batch, is passed over. A batch is smaller than asked only if the whole train set is.
        """

    def micro_batches(self, batch: Batch) -> list[Batch]:
        """Return ``batch`` in slices of ``spec.micro_batch_size`` examples; whole where not set.

        The weight of a slice is ``len(part.examples)``; it is as long as its own longest sequence.
        """

    def anchor(self) -> list[Batch]:
        """Return the anchor set of a variance-reduced method, as batches in a fixed order.

        The first ``spec.anchor_examples`` train examples, or all, ``spec.micro_batch_size`` (or
        else ``spec.batch_size``) at a time. Made when first asked for, and kept.
        """

    def tiled(self, batch: Batch, n: int) -> Batch:
        """Return ``batch`` ``n`` times over, to evaluate ``n`` models in one forward pass.

        The whole batch of the first model comes first, so ``losses`` of it has shape (n * B,).
        """

    @property
    def differentiable(self) -> bool:
        """Whether ``losses`` has a gradient: accuracy and F1 have none."""

    def losses(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return what is minimised, of each example: shape (B,), float32.

        Cross-entropy, or one minus a score. One forward pass in the mode (train or eval) the
        module is in. Where it is differentiable there is no host synchronisation of its own, so
        it can be traced on fake tensors.
        """

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the mean of ``losses``, shape (), float32."""

    def evaluate(self, module: nn.Module) -> Evaluated:
        """Evaluate on the held-back examples in evaluation mode, and restore the mode.

        Raises:
            ValueError: the run holds nothing back (``eval_examples = 0``).

        """
