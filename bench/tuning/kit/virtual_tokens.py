"""Virtual tokens inside a transformer: it is called, and answers, as if they were not there.

The parameters are those of ``peft``; the wrapper is ours. ``PeftModel`` stands around the language
model, so a head run on chosen rows alone would miss the prefix; it drops position ids (prompt) and
has no form for masked models. Here hooks on the transformer put the virtual tokens in front, and
take their outputs off again, so whoever calls it, in whatever way, sees B sequences of T tokens.

Shapes: B sequences, T tokens, P virtual tokens, L layers, K heads of keys and values, D their
width, H width of the embedding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from peft import PrefixTuningConfig, PromptTuningConfig
from peft.tuners.prefix_tuning import PrefixEncoder
from peft.tuners.prompt_tuning import PromptEmbedding
from torch import Tensor, nn
from transformers import DynamicCache

from bench.records import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Inputs = dict[str, Any]


class Prefix(PrefixEncoder):
    """Keys and values of P virtual tokens, in every layer."""

    def __init__(self, start: Tensor) -> None:  # (L, 2, K, P, D)
        """Start from these keys and values; they are copied."""
        layers, _, heads, tokens, width = start.shape
        config = PrefixTuningConfig(
            num_virtual_tokens=tokens,
            num_layers=layers,
            num_attention_heads=heads,
            token_dim=heads * width,
        )
        super().__init__(config)  # type: ignore[no-untyped-call]  # as peft has it
        self.tokens, self._shape = tokens, (tokens, layers, 2, heads, width)
        rows = start.permute(3, 0, 1, 2, 4).reshape(tokens, -1)  # in peft's order
        self.embedding.weight = nn.Parameter(rows.clone())

    def key_values(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        """Return each layer's keys and values for ``batch`` sequences, (B, K, P, D) each."""
        rows: Tensor = self(torch.arange(self.tokens, device=self.embedding.weight.device))
        layers = rows.view(self._shape).permute(1, 2, 3, 0, 4)
        return [(k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)) for k, v in layers]


class Prompt(PromptEmbedding):
    """Embeddings of P virtual tokens."""

    def __init__(self, words: nn.Module, ids: Sequence[int]) -> None:
        """Start from the embeddings that ``words`` has for ``ids``."""
        at = torch.tensor(ids, device=next(words.parameters()).device)
        with torch.no_grad():
            start: Tensor = words(at)  # (P, H)
        tokens, width = start.shape
        config = PromptTuningConfig(num_virtual_tokens=tokens, token_dim=width)
        config.num_transformer_submodules = 1
        super().__init__(config, words)  # type: ignore[no-untyped-call]  # see Prefix
        self.tokens = tokens
        self.embedding.weight = nn.Parameter(start.clone())

    def embeddings(self, batch: int) -> Tensor:  # (B, P, H)
        """Return the virtual tokens for ``batch`` sequences."""
        rows: Tensor = self(torch.arange(self.tokens, device=self.embedding.weight.device))
        return rows.expand(batch, -1, -1)


def key_values(body: PreTrainedModel, ids: Sequence[int], name: str) -> Tensor:
    """Return the keys and values that the model computes for ``ids``: (L, 2, K, P, D).

    Raises:
        UserError: it keeps none, or not of one shape in every layer.

    """
    seen: list[Tensor] = []
    if "past_key_values" in _names(body):
        kept = DynamicCache()
        tokens = torch.tensor([ids], device=next(body.parameters()).device)
        with torch.no_grad():
            body(input_ids=tokens, past_key_values=kept)
        layers: list[Any] = list(kept.layers)
        # Layers of another kind (state space, say) keep something else.
        seen = [torch.cat((at.keys, at.values)) for at in layers if _holds_keys(at)]
        seen = seen if len(seen) == len(layers) else []
    if not seen or len({pair.shape for pair in seen}) > 1:
        raise UserError(
            f"Tuning 'prefix' does not suit model '{name}': it does not keep keys and values of "
            "one shape in every layer. Choose another tuning, such as 'prompt' or 'lora'."
        )
    return torch.stack(seen)


def _holds_keys(layer: Any) -> bool:
    return isinstance(getattr(layer, "keys", None), Tensor)


def attach_prefix_(body: PreTrainedModel, prefix: Prefix) -> None:
    """Let every layer of ``body`` attend to the prefix."""
    body.add_module("prefix", prefix)
    body.register_forward_pre_hook(_with_prefix, with_kwargs=True)


def attach_prompt_(body: PreTrainedModel, prompt: Prompt) -> None:
    """Put the prompt before the embeddings that ``body`` sees, and take its outputs off."""
    body.add_module("prompt", prompt)
    body.register_forward_pre_hook(_with_prompt, with_kwargs=True)
    body.register_forward_hook(_without_prompt, with_kwargs=True)


# Hooks are plain functions that find the virtual tokens in the module they are called with: a
# copy of the model then uses its own.


def _with_prefix(body: Any, args: tuple[Any, ...], kwargs: Inputs) -> tuple[tuple[()], Inputs]:
    if body.training and any(getattr(m, "gradient_checkpointing", False) for m in body.modules()):
        raise UserError(
            "Tuning 'prefix' does not work with activation checkpointing: transformers drops the "
            "prefix without a word. Set checkpointing = false."
        )
    given, prefix = _by_name(body, args, kwargs), body.prefix
    past = given.get("past_key_values")
    if _length(past) == 0:  # else generation goes on, and the prefix is in the past
        layers = prefix.key_values(_tokens(given).shape[0])
        if past is None:
            given["past_key_values"] = DynamicCache(layers)
        else:
            for at, pair in enumerate(layers):
                past.update(*pair, at)
    _make_room(given, prefix.tokens)
    return (), given


def _with_prompt(body: Any, args: tuple[Any, ...], kwargs: Inputs) -> tuple[tuple[()], Inputs]:
    given, prompt = _by_name(body, args, kwargs), body.prompt
    goes_on = _length(given.get("past_key_values")) > 0
    batch = _tokens(given).shape[0]
    _make_room(given, prompt.tokens)
    if goes_on:
        return (), given
    ids, text = given.pop("input_ids", None), given.get("inputs_embeds")
    words = body.get_input_embeddings()(ids) if text is None else text
    given["inputs_embeds"] = torch.cat((prompt.embeddings(batch), words), 1)
    places, mask = given.get("position_ids"), given.get("attention_mask")
    if places is not None:
        own = torch.arange(prompt.tokens, device=places.device) + _first_place(body)
        given["position_ids"] = torch.cat((own.expand(len(places), -1), places), 1)
    elif mask is not None and "position_ids" in _names(body):
        # The model can't count past padding: it sees embeddings instead of ids.
        given["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0) + _first_place(body)
    return (), given


def _without_prompt(body: Any, _: tuple[Any, ...], kwargs: Inputs, output: Any) -> Any:
    """Take the outputs of the virtual tokens off; ``hidden_states``, if asked for, keep them."""
    seen = kwargs.get("inputs_embeds")
    if seen is None or _length(kwargs.get("past_key_values")) > seen.shape[1]:
        return output  # generation goes on
    hidden = output[0][:, body.prompt.tokens :]
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    output.last_hidden_state = hidden
    if getattr(output, "pooler_output", None) is not None:
        output.pooler_output = body.pooler(hidden)
    return output


def _make_room(given: Inputs, tokens: int) -> None:
    """Unmask the virtual tokens, and move the text behind them."""
    mask, places = given.get("attention_mask"), given.get("position_ids")
    if mask is not None:
        given["attention_mask"] = torch.cat((mask.new_ones(len(mask), tokens), mask), 1)
    if places is not None:
        given["position_ids"] = places + tokens


def _by_name(body: nn.Module, args: tuple[Any, ...], kwargs: Inputs) -> Inputs:
    return {**dict(zip(_names(body), args, strict=False)), **kwargs}


def _names(body: nn.Module) -> tuple[str, ...]:
    return _names_of(type(body).forward)


@cache
def _names_of(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]  # without self


def _tokens(given: Inputs) -> Tensor:  # (B, T) or (B, T, H)
    tokens: Tensor | None = given.get("input_ids")
    return given["inputs_embeds"] if tokens is None else tokens


def _length(past: Any) -> int:
    return 0 if past is None else int(past.get_seq_length())


def _first_place(body: Any) -> int:
    """Return the position id of a first token: RoBERTa counts from behind the padding id."""
    embeddings: Any = getattr(body, "embeddings", None)
    if hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(embeddings.padding_idx) + 1
    return 0
