"""From texts to token ids: the text is cut to fit, the prompt never."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from bench.models import Kind, LoadedModel
from bench.models.quiet import quiet
from bench.records import UserError
from bench.tasks.kit.values import Example, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """One example as the model takes it, unpadded."""

    ids: tuple[int, ...]
    label: int
    answer_at: int
    """Where the answer is predicted: the mask token, or the last token."""


class Encoder:
    """A prompt, for one model."""

    def __init__(
        self, loaded: LoadedModel, prompt: Prompt, prompt_name: str, seq_len: int
    ) -> None:
        """Check that the prompt suits the model.

        Raises:
            UserError: the model has no tokenizer, the prompt no form for its kind, the prompt
                alone is longer than ``seq_len``, or a label word is not one token.

        """
        if loaded.tokenizer is None:
            raise UserError(
                f"Model '{loaded.facts.name}' has random weights and no tokenizer, so it can't "
                "read text. Choose a checkpoint (smollm2-135m), or the task 'marker' or "
                "'random_tokens'."
            )
        template = prompt.masked if loaded.kind == "masked" else prompt.causal
        if template is None:
            raise UserError(f"Prompt '{prompt_name}' has no form for masked language models.")
        self._tokenizer: PreTrainedTokenizerBase = loaded.tokenizer
        self._mask: str = str(self._tokenizer.mask_token) if loaded.kind == "masked" else ""
        self._kind: Kind = loaded.kind
        self._template = template
        self._seq_len = seq_len
        alone = len(self._ids(self._fill("")))
        if alone >= seq_len:
            raise UserError(
                f"seq_len = {seq_len} leaves no room for text: prompt '{prompt_name}' alone takes "
                f"{alone} tokens. Raise seq_len."
            )
        self.candidates = tuple(self._word(word) for word in prompt.words)
        if len(set(self.candidates)) < len(self.candidates):
            raise UserError(f"Prompt '{prompt_name}' has label words with the same token.")

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return each example's token ids, at most ``seq_len`` of them."""
        if not examples:
            return []
        with quiet():  # it warns of long texts, which are cut here
            rows = self._all_ids([self._fill(e.text) for e in examples])
            return [
                self._encoded(ids if len(ids) <= self._seq_len else self._cut(e.text), e.label)
                for ids, e in zip(rows, examples, strict=True)
            ]

    def _encoded(self, ids: list[int], label: int) -> Encoded:
        last = len(ids) - 1
        mask = self._tokenizer.mask_token_id
        return Encoded(tuple(ids), label, ids.index(mask) if self._kind == "masked" else last)

    def _cut(self, text: str) -> list[int]:
        """Return the ids with as much of the text as fits, cut between words where there are."""
        fits, too_long = 0, len(text)
        best = self._ids(self._fill(""))
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            ids = self._ids(self._fill(_whole_words(text[:middle])))
            if len(ids) <= self._seq_len:
                fits, best = middle, ids
            else:
                too_long = middle
        return best

    def _fill(self, text: str) -> str:
        clean = text.replace(self._mask, " ") if self._mask else text
        return self._template.format(text=clean.strip(), mask=self._mask)

    def _ids(self, text: str) -> list[int]:
        return self._all_ids([text])[0]

    def _all_ids(self, texts: list[str]) -> list[list[int]]:
        """Tokenise with the special tokens that the model's own tokenizer adds."""
        return cast("list[list[int]]", self._tokenizer(texts)["input_ids"])

    def _word(self, word: str) -> int:
        """Return the one token of a label word, as it stands after the prompt."""
        asked = self._ids(self._fill("A film."))
        if self._kind == "masked":
            answered = self._ids(self._fill("A film.").replace(self._mask, word))
            at = asked.index(cast("int", self._tokenizer.mask_token_id))
        else:
            answered = self._ids(self._fill("A film.") + word)
            at = len(asked)
            asked = [*asked, -1]
        same = asked[:at] == answered[:at] and asked[at + 1 :] == answered[at + 1 :]
        if not same or len(asked) != len(answered):
            raise UserError(
                f"Label word '{word}' is not one token after the prompt, for this model's "
                "tokenizer. Choose another prompt or task."
            )
        return answered[at]


def _whole_words(text: str) -> str:
    return text.rsplit(" ", 1)[0] if " " in text else text
