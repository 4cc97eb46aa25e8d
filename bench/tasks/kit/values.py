"""The values of a task: examples and prompts as people write them, batches as models take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bench.records import TaskFacts

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Example:
    """One text and its class, counted from 0."""

    text: str
    label: int


@dataclass(frozen=True)
class Examples:
    """The data of a classification task, the same for every seed."""

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
    """``{text}`` and words after it; the model continues. Ends without a space."""
    words: tuple[str, ...]
    """The answer of each class, with its leading space; one token each."""
    masked: str | None = None
    """The same for masked models, with ``{mask}`` for the answer (and its leading space)."""


@dataclass(frozen=True)
class Batch:
    """A minibatch on the model's device: B sequences of T tokens, C classes."""

    examples: tuple[int, ...]
    """Index of each sequence in the train (or the held-back) set."""
    input_ids: Tensor  # (B, T) int64
    targets: Tensor  # (B,) int64 class; or (B, T) int64 token, -100 where none is asked
    attention_mask: Tensor | None = None  # (B, T) int64, 0 at padding; None: nothing is padded
    position_ids: Tensor | None = None  # (B, T) int64; None: 0, 1, 2, ...
    answer_at: Tensor | None = None  # (B,) int64 place of the mask token; None: the last place
    candidates: Tensor | None = None  # (C,) int64 token of each class


@dataclass(frozen=True)
class Evaluated:
    """The result on the held-back examples."""

    n: int
    correct: int
    loss: float
    """Mean cross-entropy over the label words, in nats."""
    predictions: list[int]
    """Predicted class of each example, in the order of the held-back set."""


class Task(Protocol):
    """What the harness asks of a task. Global random streams are never touched.

    Methods that need the whole train set at once (SVRG) will get it here, as micro-batches:
    an ``anchor(size)`` beside ``batch``.
    """

    @property
    def facts(self) -> TaskFacts:
        """What was really asked, for the record."""

    def batch(self, step: int) -> Batch:
        """Return the minibatch of training step ``step``, counted from 0.

        A function of (spec.seed, step) alone: the same for every method, and at a resumed step.
        Every epoch is a new order of the train set; what is left at its end, being less than a
        batch, is passed over. A batch is smaller than asked only if the whole train set is.
        """

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, shape (), float32, differentiable.

        One forward pass in the mode (train or eval) the module is in; no host synchronisation
        of its own, so it can be traced on fake tensors.
        """

    def evaluate(self, module: nn.Module) -> Evaluated:
        """Evaluate on the held-back examples in evaluation mode, and restore the mode.

        Raises:
            ValueError: the run holds nothing back (``eval_examples = 0``).

        """
