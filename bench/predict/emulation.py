"""What decides allocations and hangs on the device, told to a step that runs on fake tensors.

Fake tensors are on "cpu" whatever is predicted (fake "cuda" tensors abort the interpreter of a
CPU build of torch), so what torch and we decide by the device is decided here:

- The noise kernel. It takes real tensors alone, and the reference would allocate in its place. On
  the CPU (numba) it allocates no tensor; on a GPU (triton) 12 bytes a term. A pass over fake
  weights stops after its second sweep: what it holds is seen by then, however many there are.
- Attention. On the CPU torch's own choice runs. On a GPU ``scaled_dot_product_attention`` takes
  flash where there is no mask and 16-bit inputs, else the memory-efficient kernel (its mask
  expanded, and padded to a multiple of 16), and the plain formula where autograd is forward-mode.
  That is the order on Ampere and later; cuDNN's kernel, which torch prefers on none by default,
  is left out. "eager" attention is a model's own code, and needs nothing.
- Dropout. A mask of numbers on the CPU, ``native_dropout`` with one of booleans on a GPU.
- Optimisers. Ours are asked for by name (``fused=True``), so there is no default to emulate.
- Pieces: elements that are worked on at a time, larger on a GPU.

And on either: transformers takes other roads when it meets fake tensors (masks are made that a
real run leaves out). Here it takes those of a real run, where an unpadded batch has no mask.

Not emulated: autocast's lists of operations (those of the CPU are used; for OPT, RoBERTa and
LLaMA they differ in norms and softmax alone), and low-rank noise on a GPU, which is swept a piece
at a time as the CPU reference is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Literal, Protocol
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from bench.models import random_weights
from zo_core import noise
from zo_core.base import Param, Piece, Term, is_fake
from zo_core.estimators import block_scaled
from zo_core.noise import cpu, gpu, low_rank_cpu, reference
from zo_core.noise.low_rank import Product
from zo_core.perturbers import by_rows, elsewhere
from zo_core.structured import low_rank, magnitude

Device = Literal["cpu", "cuda"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of weights that both noise kernels take."""
_MASK_MULTIPLE = 16
_WIDEST_HEAD = 256  # of flash attention


class Counter(Protocol):
    """Who counts the work: a tracer."""

    def times(self, factor: float) -> AbstractContextManager[None]:
        """Count what happens meanwhile so many times."""

    def worked(self, dtype: str, flops: int, nbytes: int) -> None:
        """Count one operation."""


@contextmanager
def emulated(device: Device, counter: Counter) -> Iterator[None]:
    """While open, fake CPU tensors are treated as those of ``device`` are.

    A pass over fake weights visits their first elements alone; ``counter`` is told the work of
    all.
    """
    patches = [*_roads_of_transformers(), *_noise(device), *_whole_passes(device, counter)]
    # What these ask of the values decides no size; what they hold meanwhile hangs on shapes.
    patches += [(module, "is_fake", lambda tensor: False) for module in (block_scaled, magnitude)]
    patches.append((torch, "bincount", _bincount(torch.bincount)))
    with ExitStack() as stack:
        for target, name, value in patches:
            stack.enter_context(patch.object(target, name, value))
        if device == "cuda":
            stack.enter_context(patch.object(F, "scaled_dot_product_attention", _attention))
            stack.enter_context(patch.object(F, "dropout", _dropout))
        yield


Patch = tuple[Any, str, Any]


def _roads_of_transformers() -> list[Patch]:
    from transformers import masking_utils  # why here: seconds to import

    find = masking_utils.find_packed_sequence_indices

    def not_packed(position_ids: Tensor) -> None:
        find(position_ids)  # looks, and finds none: sequences are never packed here

    return [
        (masking_utils, "is_tracing", lambda tensor=None: False),
        (masking_utils, "find_packed_sequence_indices", not_packed),
    ]


def _noise(device: Device) -> list[Patch]:
    if device == "cpu":
        return [
            (cpu, "takes", _or_fake(cpu.takes)),
            (low_rank, "is_fake", lambda tensor: False),
            *(
                (module, name, _nothing_of_fakes(getattr(module, name)))
                for module, name in (
                    (cpu, "write"),
                    (cpu, "prepared"),
                    (cpu, "write_rounded"),
                    (cpu, "write_rows"),
                )
            ),
            (low_rank_cpu, "write", _factor_laid_out(low_rank_cpu.write)),
            (random_weights, "seeded", _stream_kept(random_weights.seeded)),
        ]
    return [
        (gpu, "takes", _or_fake(gpu.takes)),
        (gpu, "write", _launched),
        (noise, "_fastest", lambda device: ("triton", None)),
        (noise, "piece_of", lambda device: noise.DEVICE_PIECE),
        (reference, "chunk_of", lambda device: reference.DEVICE_CHUNK),
        (by_rows, "_large", lambda tensor: by_rows.DEVICE_LARGE),
        (elsewhere, "by_rows", _no_looked_up_rows(by_rows.by_rows)),
    ]


def _whole_passes(device: Device, counter: Counter) -> list[Patch]:
    real_add, real_pieces = noise.add_, noise.pieces

    def add_(
        params: Sequence[Param], name: str, terms: Sequence[Term], *rest: Any, **options: Any
    ) -> None:
        with counter.times(0):
            if rest or options.get("rounding") is not None or not all(map(_kernel_takes, params)):
                real_add(params, name, terms, *rest, **options)
            elif (
                device == "cuda" and terms and params
            ):  # as every launch of the pass, one after another
                for card in dict.fromkeys(param.tensor.device for param in params):
                    _hold_terms(terms, card)
        for param in params if terms else ():
            dtype = str(param.tensor.dtype).removeprefix("torch.")
            counter.worked(dtype, 0, 2 * param.tensor.nbytes)

    def pieces(params: Iterable[Param]) -> Iterator[Piece]:
        for param in params:
            visited = list(real_pieces((param,)))
            seen = sum(piece.part.numel() for piece in visited)
            # What is held of a piece while the next one is worked on is seen in the second.
            sweeps = 2 if param.tensor.numel() > seen else 1
            with counter.times(param.tensor.numel() / seen / sweeps):
                for _ in range(sweeps):
                    yield from visited

    return [(noise, "add_", add_), (noise, "pieces", pieces)]


def _kernel_takes(param: Param) -> bool:
    tensor = param.tensor
    return is_fake(tensor) and tensor.is_contiguous() and tensor.dtype in _DTYPES


def _bincount(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``torch.bincount``, of fake tensors with no more bins than were asked for."""

    def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
        if not is_fake(input):
            return real(input, weights, minlength)
        return torch.zeros(minlength, dtype=torch.int64, device=input.device)

    return bincount


def _or_fake(takes: Callable[[Tensor], bool]) -> Callable[[Tensor], bool]:
    def also(flat: Tensor) -> bool:
        return takes(flat) or (is_fake(flat) and flat.dtype in _DTYPES and flat.is_contiguous())

    return also


def _nothing_of_fakes(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return the kernel, or what prepares it, without work on fake tensors: it allocates none."""

    def run(first: Any, *rest: Any, **options: Any) -> Any:
        flats = [first] if isinstance(first, Tensor) else [flat.source for flat in first]
        if any(is_fake(flat) for flat in flats):
            return lambda terms: None
        return kernel(first, *rest, **options)

    return run


def _factor_laid_out(kernel: Callable[..., None]) -> Callable[..., None]:
    """Return the kernel, of fake tensors with what it holds: factors laid out anew."""

    def write(products: Sequence[Product]) -> None:
        if any(is_fake(one.source) for one in products):
            # Bound to a name, so that they are held at once.
            laid_out = [low_rank_cpu.in_rows(one.v.detach()) for one in products]
            del laid_out
        else:
            kernel(products)

    return write


def _stream_kept(
    seeded: Callable[[int, str], AbstractContextManager[None]],
) -> Callable[[int, str], AbstractContextManager[None]]:
    """Return ``seeded``, which keeps the state of torch's stream where no operation shows it."""

    @contextmanager
    def kept(seed: int, device: str) -> Iterator[None]:
        with seeded(seed, device):
            state = torch.empty(torch.default_generator.get_state().numel(), dtype=torch.uint8)
            yield
            del state

    return kept


def _launched(
    source: Tensor,
    outs: Sequence[Tensor],
    name: str,
    key: int,
    terms: Sequence[Term],
    first: int = 0,
    threshold: float | None = None,
) -> None:
    _hold_terms(terms, source.device)


def _hold_terms(terms: Sequence[Term], device: torch.device) -> None:
    """Hold what a launch of the triton kernel holds: its terms on the device."""
    torch.empty(3 * len(terms), dtype=torch.int32, device=device)


def _no_looked_up_rows(find: Callable[..., Any]) -> Callable[..., Any]:
    def large(module: Any, own: Any) -> Any:
        return None if isinstance(module, torch.nn.Embedding) else find(module, own)

    return large


def _dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0 or not input.numel():
        return input
    return torch.ops.aten.native_dropout(input, p, True)[0]  # type: ignore[no-any-return]


def _attention(
    query: Tensor,  # (B, H, T, D)
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    aten = torch.ops.aten
    if _asked_for_math():
        return aten._scaled_dot_product_attention_math(  # type: ignore[no-any-return]
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    width = query.shape[-1]
    if attn_mask is None and query.itemsize == 2 and width <= _WIDEST_HEAD:
        query, key, value = (_widened(t, 8) for t in (query, key, value))
        scale = 1 / math.sqrt(width) if scale is None else scale
        out = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
        return out[..., :width]  # type: ignore[no-any-return]
    if enable_gqa:  # which the memory-efficient kernel does not take
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    bias = None if attn_mask is None else _as_bias(attn_mask, query, key.shape[2])
    graph = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return aten._scaled_dot_product_efficient_attention(  # type: ignore[no-any-return]
        query, key, value, bias, graph, dropout_p, is_causal, scale=scale
    )[0]


def _asked_for_math() -> bool:
    backends = torch.nn.attention._cur_sdpa_kernel_backends()
    return list(backends) == [SDPBackend.MATH]


def _widened(tensor: Tensor, multiple: int) -> Tensor:
    short = -tensor.shape[-1] % multiple
    return F.pad(tensor, (0, short)) if short else tensor


def _as_bias(mask: Tensor, query: Tensor, keys: int) -> Tensor:
    """Return the mask as the kernel wants it: numbers of the inputs' dtype, expanded, aligned."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -math.inf)
    short = -keys % _MASK_MULTIPLE
    if short:
        mask = F.pad(mask, (0, short))[..., :keys]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], keys)
