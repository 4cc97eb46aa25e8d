"""From texts to token ids: the text is cut to fit, the prompt never.

MeZO cuts the left of the whole prompt instead; a question or a title is lost that way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from string import Formatter
from typing import TYPE_CHECKING, cast

from bench.models import LoadedModel
from bench.models.quiet import quiet
from bench.records import UserError
from bench.tasks.kit.values import Example, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """One example as the model takes it, unpadded."""

    ids: tuple[int, ...]
    """The question."""
    label: int
    answer_at: int
    """Where the answer is predicted: the mask token, or the last token."""
    sequences: tuple[tuple[tuple[int, ...], int], ...] = ()
    """The question with each option (or with the one right answer) after it, and how many tokens
    at the end are that answer."""


class Encoder:
    """A prompt, for one model."""

    def __init__(
        self,
        loaded: LoadedModel,
        prompt: Prompt,
        prompt_name: str,
        seq_len: int,
        before: Sequence[tuple[Example, str]] = (),
    ) -> None:
        """Check that the prompt suits the model; ``before`` are demonstrations, with answers.

        Raises:
            UserError: the model has no tokenizer, or the prompt no form for its kind.

        """
        masked = loaded.kind == "masked"
        template = prompt.masked if masked else prompt.causal
        if template is None:
            raise UserError(f"Prompt '{prompt_name}' has no form for masked language models.")
        self._tokenizer = tokenizer_of(loaded)
        self._mask: str = str(self._tokenizer.mask_token) if masked else ""
        self._template = template
        self._seq_len = seq_len
        n = len(before)
        self._name = f"'{prompt_name}'" + (f" with {n} demonstrations" if n else "")
        self._before = "".join(self._solved(*pair) for pair in before)

    def question(self, example: Example, after: str = "") -> Encoded:
        """Return the question alone, with ``after`` at its end (a newline that all words share).

        Raises:
            UserError: without its text it is still longer than ``seq_len``.

        """

        def ids_of(text: str) -> list[int]:
            return self._ids(self._fill(example, text) + after)

        ids = ids_of(self._cut(example.text, ids_of, self._seq_len))
        mask = self._tokenizer.mask_token_id
        at = ids.index(mask) if self._mask else len(ids) - 1
        return Encoded(tuple(ids), example.label, at)

    def answered(self, example: Example, answers: Sequence[str], ask_within: int = 0) -> Encoded:
        """Return the question with each of ``answers`` after it, all with the same cut.

        Question and longest answer together are at most ``seq_len`` tokens; the question that
        stands alone is cut to ``ask_within`` instead, if that is given (generation writes the
        answer itself).

        Raises:
            UserError: as ``question``.

        """

        def ids_of(text: str, answer: str = "") -> list[int]:
            return self._ids(self._fill(example, text) + answer)

        longest = max(answers, key=lambda a: len(ids_of("", a)))
        text = self._cut(example.text, lambda t: ids_of(t, longest), self._seq_len)
        asked = ids_of(text)
        whole = [ids_of(text, answer) for answer in answers]
        sequences = tuple((tuple(ids), len(ids) - _shared(asked, ids)) for ids in whole)
        if ask_within:
            asked = ids_of(self._cut(example.text, ids_of, ask_within))
        return Encoded(tuple(asked), example.label, len(asked) - 1, sequences)

    def candidates(self, words: Sequence[str], after: str = "") -> tuple[int, ...]:
        """Return the one token of each word, as it stands after a question (and ``after``).

        Raises:
            UserError: a word is not one token, or two are the same.

        """
        found = tuple(self._word(word, after) for word in words)
        if len(set(found)) < len(found):
            raise UserError(f"Prompt {self._name} has label words with the same token.")
        return found

    def _cut(self, text: str, ids_of: Callable[[str], list[int]], limit: int) -> str:
        alone = len(ids_of(text))
        if alone <= limit:
            return text
        least = len(ids_of(""))
        if least >= limit:
            room, remedy = f"seq_len = {limit}", "Raise seq_len"
            if limit < self._seq_len:
                room = f"The model's context, less what it is to write, is {limit} tokens, which"
                remedy = "Choose another model"
            raise UserError(
                f"{room} leaves no room for text: prompt {self._name} alone takes {least} tokens. "
                f"{remedy}{', or lower demonstrations' if self._before else ''}."
            )
        return cut_to_fit(text, ids_of, limit)

    def _fill(self, example: Example, text: str) -> str:
        return self._before + self._filled(example, text, self._mask)

    def _filled(self, example: Example, text: str, mask: str) -> str:
        parts = {name: self._clean(part) for name, part in example.fields.items()}
        return self._template.format(**parts, text=self._clean(text), mask=mask)

    def _clean(self, text: str) -> str:
        return (text.replace(self._mask, " ") if self._mask else text).strip()

    def _solved(self, example: Example, answer: str) -> str:
        """Return a demonstration, as MeZO separates them: by an empty line."""
        if self._mask:
            return self._filled(example, example.text, answer).rstrip("\n") + "\n\n"
        return (self._filled(example, example.text, "") + answer).rstrip("\n") + "\n\n"

    def _ids(self, text: str) -> list[int]:
        """Tokenise with the special tokens that the model's own tokenizer adds."""
        with quiet():  # it warns of long texts, which are cut here
            return cast("list[int]", self._tokenizer(text)["input_ids"])

    def _word(self, word: str, after: str) -> int:
        """Return the one token of a label word, as it stands after the prompt."""
        names = {name for _, name, _, _ in Formatter().parse(self._template) if name}
        probe = Example("A film.", fields=dict.fromkeys(names - {"text", "mask"}, "A film."))
        asked = self._ids(self._filled(probe, probe.text, self._mask) + after)
        if self._mask:
            answered = self._ids(self._filled(probe, probe.text, word))
            at = asked.index(cast("int", self._tokenizer.mask_token_id))
        else:
            answered = self._ids(self._filled(probe, probe.text, "") + after + word)
            at = len(asked)
            asked = [*asked, -1]
        same = asked[:at] == answered[:at] and asked[at + 1 :] == answered[at + 1 :]
        if not same or len(asked) != len(answered):
            raise UserError(
                f"Label word '{word}' is not one token after the prompt, for this model's "
                "tokenizer. Choose another prompt or task, or objective = 'options'."
            )
        return answered[at]


def tokenizer_of(loaded: LoadedModel) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer.

    Raises:
        UserError: it has none.

    """
    if loaded.tokenizer is None:
        raise UserError(
            f"Model '{loaded.facts.name}' has random weights and no tokenizer, so it can't read "
            "text. Choose a checkpoint (smollm2-135m), or the task 'marker' or 'random_tokens'."
        )
    return loaded.tokenizer


def cut_to_fit(text: str, ids_of: Callable[[str], list[int]], limit: int) -> str:
    """Return as much of ``text`` as keeps ``ids_of`` within ``limit``, cut between words.

    Only the first word may be cut within. With no text at all it is taken to fit.
    """
    fits, too_long, best = 0, len(text), ""
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        shorter = _whole_words(text[:middle])
        if len(ids_of(shorter)) <= limit:
            fits, best = middle, shorter
        else:
            too_long = middle
    return best


def _whole_words(text: str) -> str:
    return text.rsplit(" ", 1)[0] if " " in text else text


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens the two begin with alike."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
