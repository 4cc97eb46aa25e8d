"""Perturbed copies of weights, which modules are pointed at while they run; theta is only read.

A copy is written in one pass (``Distribution.write``) to room that is taken once a look and used
again by every module, and the tensor's ``data`` is exchanged for it. So all that holds the tensor
sees the copy: tied modules, and those that keep lists of their weights. Nothing is written to
theta, so nothing has to be restored but pointers. Large layers go without a copy of their whole
matrix: see ``by_rows``. Of small ones the copies are made for many at once: see ``groups``.

Tensors that can't be exchanged (of no module, where others may hold views of them; not contiguous;
of a type of their own, fake ones among them) are saved to that room, and perturbed in place.

Groups, and the rows of a large layer where there is room, are written to two places in turn: cores
that have just read a copy hold it in their caches, and take longer to let another write to it than
to find other memory.

Where copies lie, and how the noise kernel goes over them, is the same at every look, and to find
it out takes about as long as the noise of a layer: it is kept (``room_for``), and memory is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from zo_core.base import Distribution, Param, Params, Piece, Point, Term, is_fake
from zo_core.perturbers.by_rows import ByRows, Looks, PerturbedRows, Rows, by_rows

_SMALL = 1 << 16  # elements of a bias or norm that is perturbed ahead
_TOGETHER = 1 << 24  # bytes of copies made in one call: threads wait for each other at every one
_PLACES = 1 << 10  # calls of the kernel that are prepared once: in large models they take longer
_USES = getattr(torch._C, "_storage_Use_Count", None)  # of no public name
_ALIGNED = 256  # bytes: of vector loads and matrix units, whatever the device


@contextmanager
def room_for(
    params: Params,
    along: Distribution,
    copies: int = 1,
    ahead: bool = False,
    together: bool = True,
) -> Iterator[Elsewhere]:
    """Open the room of a look: that of the look before where nothing differs but seeds."""
    asked = along, copies, ahead, together, _standing(params)
    kept = _kept.pop(params, None)  # out, while it is in use
    room = kept[1] if kept and kept[0] == asked else Elsewhere(params, *asked[:4])
    yield room
    # Nothing was raised, which may have left it half used.
    if along.lasting and asked[-1] and room.rests():
        _kept[params] = asked, room


_kept: WeakKeyDictionary[Params, tuple[tuple[Any, ...], Elsewhere]] = WeakKeyDictionary()


def _standing(params: Params) -> tuple[Any, ...]:
    """Return what a room hangs on beside the arguments; nothing where it can't be told."""
    if params.module is None or not all(_exchangeable(tensor) for tensor in params.tensors):
        return ()
    modules = (
        (id(m), type(m), "forward" in m.__dict__, *map(id, m._parameters.values()))
        for m in params.module.modules()
    )
    return params.addresses, *modules


class Elsewhere:
    """Room for the copies of modules that run, those around them included, and who is in it."""

    def __init__(
        self,
        params: Params,
        along: Distribution,
        copies: int = 1,
        ahead: bool = False,
        together: bool = True,
    ) -> None:
        """Perturb ``params`` along a distribution; the rest is as for ``room_bytes``."""
        self.along, self.owners = along, owners(params)
        self.ahead = {p.key: p for p in _ahead(params)} if ahead else {}
        layers = ((module, by_rows(module, own)) for module, own in self.owners.items())
        self.layers = {module: layer for module, layer in layers if layer}
        self.groups = groups(params, copies, ahead) if together else {}
        self._all, self._in_module = tuple(params), params.module is not None
        self._size = _room(params, self.owners, self.groups, copies, ahead)
        self._used = dict.fromkeys(self._size, 0)
        self._buffers: dict[torch.device, Tensor] = {}
        self._views: dict[tuple[torch.device, torch.dtype], Tensor] = {}  # of the buffers
        self._ours: dict[torch.device, int] = {}  # tensors of the buffers, that stay
        self._asleep = False  # whether the buffers have no memory
        self._rooms: set[int] = set()  # addresses of buffers that were lent to modules
        self._places: dict[Any, Places] = {}  # of copies that were made at an earlier point
        self._ready: dict[int, list[Tensor]] = {}  # by id of the tensor, copies to be stood on
        self._away: set[int] = set()  # ids of tensors that are perturbed now
        self._seen: set[int] = set()
        self._turn = False  # whether the next group goes to the second place

    def rests(self) -> bool:
        """Give the memory back until the room is used again, if nobody else has a hold on it.

        A tensor that somebody has kept would lose its memory, and what numpy has seen can't be
        resized.
        """
        storages = [buffer.untyped_storage() for buffer in self._buffers.values()]
        told = all(storage.resizable() for storage in storages) and _USES is not None
        if not told or any(self._others(device) for device in self._buffers):
            return False
        for storage in storages:
            storage.resize_(0)
        self._asleep = True
        self._turn = False
        self._rooms.clear()
        self._seen.clear()
        return True

    def _others(self, device: torch.device) -> int:
        """Count the tensors of a buffer that were not made here to stay."""
        if device not in self._buffers:
            return 0
        return _uses(self._buffers[device]) - self._ours.get(device, 0)

    def _stay(self, device: torch.device, others: int) -> None:
        """Take those that were made since there were so many others for ours."""
        new = self._others(device) - others
        self._ours[device] = self._ours.get(device, 0) + new

    def _wake(self) -> None:
        if self._asleep:
            for device, buffer in self._buffers.items():
                buffer.untyped_storage().resize_(self._size[device])
                self._rooms.add(buffer.data_ptr())
            self._asleep = False

    def prepare(self, group: Sequence[Param], points: Sequence[Point]) -> Ready:
        """Make the copies of a group, for modules that will ``stand`` at those points."""
        ready = Ready(self)
        mine = [p for p in group if id(p.tensor) not in self._ready and _exchangeable(p.tensor)]
        try:
            with torch.inference_mode(False), torch.no_grad():  # as in stand
                ready.add(mine, points)
        except BaseException:  # why: as in stand
            ready.back_()
            raise
        return ready

    def stand(self, own: Sequence[Param], points: Sequence[Point], group: bool = False) -> Stand:
        """Make copies of those of ``own`` that are not perturbed yet, at the first of ``points``.

        Args:
            own: of a module.
            points: one, or two of which the second is minus the first: then noise is drawn once.
            group: whether they are one of ``groups``.

        """
        mine = [p for p in own if id(p.tensor) not in self._away]
        stand = Stand(self, points)
        mine = [p for p in mine if not stand.found(p)]
        if not mine:
            return stand
        try:
            # Tensors made in inference mode could not be written to outside of it.
            with torch.inference_mode(False), torch.no_grad():
                stand.add(mine, self._in_module, group)
        except BaseException:  # why: whatever was raised, pointers go back
            stand.back_()
            raise
        return stand

    def lend(self, layer: ByRows, looks: Looks) -> Stand:
        """Give a large layer perturbed rows for its weight, unless that is perturbed already.

        From ``at_`` to ``back_`` of the stand. Its bias goes with it, at the first of the points,
        unless ``looks`` says what it is at each.
        """
        weight, held = layer.weight, layer.layer.__dict__
        along = layer.others if looks.biases is None else ()
        if id(weight.tensor) in self._away or "weight" in held:
            return self.stand(along, looks.points[:1])
        stand = self.stand(along if looks.points[0] else (), looks.points[:1])
        rows = range(len(weight.tensor))
        made = PerturbedRows(layer, looks, self._written, rows, weight.tensor.dtype)
        stand.lent = held, made
        return stand

    @contextmanager
    def _written(
        self, layer: ByRows, points: Sequence[Point], rows: Rows
    ) -> Iterator[list[Tensor]]:
        weight, used = layer.weight.tensor.detach(), dict(self._used)
        if not points[0]:
            yield [weight[rows.start : rows.stop] if isinstance(rows, range) else weight[rows]]
            return
        shape = (len(rows), weight.shape[1])
        try:
            # Tensors made in inference mode could not be written to outside of it.
            with torch.inference_mode(False), torch.no_grad():
                if isinstance(rows, range):
                    outs = self._tile(layer.weight, shape, rows.start, points)
                else:
                    outs = [weight.new_empty(shape) for _ in points]
                    if not is_fake(weight) and len(rows):
                        self.along.write_rows(layer.weight, rows, outs, points[0])
            yield outs
        finally:
            self._used = used

    def _tile(
        self, weight: Param, shape: tuple[int, int], first: int, points: Sequence[Point]
    ) -> list[Tensor]:
        """Return copies at each point of rows of a matrix from ``first`` on."""
        clean = weight.tensor.detach()
        if is_fake(clean):
            return [self.take(clean, shape) for _ in points]

        def pieces() -> Iterator[tuple[Piece, Sequence[int]]]:
            part = clean[first : first + shape[0]].view(-1)
            yield Piece(weight, part, first * shape[1]), shape

        (outs,) = self._copied((id(weight.tensor), first, shape[0]), pieces, points, by_turns=True)
        return outs

    def are_away(self, own: Sequence[Param]) -> bool:
        """Whether all of them are perturbed now."""
        return all(id(p.tensor) in self._away for p in own)

    def runs(self, own: Sequence[Param]) -> None:
        """Take note that a module runs that holds them."""
        self._seen.update(id(p.tensor) for p in own)

    def check(self) -> None:
        """Refuse to have left a tensor out."""
        for param in self._all:
            if id(param.tensor) not in self._seen:
                raise ValueError(
                    "restore='exact' and 'batched' perturb every module while it runs, and "
                    f"'{param.name}' is not used in the forward pass of its module. Freeze it, "
                    "or use restore='arithmetic'."
                )

    def apart(self, output: Any) -> Any:
        """Return ``output`` with copies of what lies in the room, which is used again.

        So it is where a module returns its weights themselves, or a view (a soft prompt).
        """
        if not self._rooms:
            return output

        def lies_within(leaf: Any) -> bool:
            strided = isinstance(leaf, Tensor) and leaf.layout == torch.strided
            return strided and leaf.untyped_storage().data_ptr() in self._rooms

        leaves = (output,) if isinstance(output, Tensor) else tree_leaves(output)
        if not any(map(lies_within, leaves)):
            return output
        return tree_map(lambda leaf: leaf.clone() if lies_within(leaf) else leaf, output)

    def copied(
        self, params: Sequence[Param], points: Sequence[Point], group: bool
    ) -> list[list[Tensor]]:
        """Return copies at each point of tensors that can be exchanged, all made in one call."""

        def pieces() -> Iterator[tuple[Piece, Sequence[int]]]:
            for param in params:
                clean = param.tensor.detach()
                yield Piece(param, clean.view(-1), 0), clean.shape

        return self._copied(tuple([id(p.tensor) for p in params]), pieces, points, group)

    def _copied(
        self,
        what: tuple[int, ...],
        pieces: Callable[[], Iterator[tuple[Piece, Sequence[int]]]],
        points: Sequence[Point],
        by_turns: bool,
    ) -> list[list[Tensor]]:
        """Return copies of pieces, in given shapes; ``what`` says which those are."""
        self._wake()
        turn = by_turns and self._turn
        self._turn ^= by_turns
        key = what, len(points), tuple(self._used.values()), turn
        places = self._places.get(key)
        if places is None:
            made, writes, parts = [], [], list(pieces())
            others = {device: self._others(device) for device in self._size}
            if turn:
                self._skip([piece.part for piece, _ in parts], len(points))
            before = tuple(self._used.values())
            for piece, shape in parts:
                outs = [self.take(piece.part, shape) for _ in points]
                self._rooms.update(out.untyped_storage().data_ptr() for out in outs)
                made.append(outs)
                writes.append((piece, [out.view(-1) for out in outs]))
            places = Places(made, self.along.prepared(writes), tuple(self._used.values()))
            needed = sum(_padded(out.nbytes) for outs in made for out in outs)
            in_room = sum(places.used) - sum(before) == needed  # all of them, and it stays
            if in_room and len(self._places) < _PLACES:
                self._places[key] = places
                for device in self._buffers:
                    self._stay(device, others[device])
        self._used = dict(zip(self._used, places.used, strict=True))
        places.write(points[0])
        return places.copies

    def _skip(self, parts: Sequence[Tensor], copies: int) -> None:
        """Leave as much room free as is going to be taken, where there is twice that."""
        for device, used in self._used.items():
            mine = (part for part in parts if part.device == device)
            needed = copies * sum(_padded(part.nbytes) for part in mine)
            if used + 2 * needed <= self._size[device]:
                self._used[device] += needed

    def take(self, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Return room for a tensor (of ``shape``), contiguous, until a stand made before ends."""
        self._wake()
        shape = like.shape if shape is None else shape
        size, kind = math.prod(shape), (like.device, like.dtype)
        first, count = self._used[like.device], _padded(size * like.itemsize)
        if first + count > self._size[like.device]:  # modules run in others that don't hold them
            return like.new_empty(shape)
        self._used[like.device] += count
        if kind not in self._views:
            others = self._others(like.device)
            if like.device not in self._buffers:
                made = like.new_empty(self._size[like.device], dtype=torch.uint8)
                self._buffers[like.device] = made
            self._views[kind] = self._buffers[like.device].view(like.dtype)
            self._stay(like.device, others)
        begin = first // like.itemsize
        return self._views[kind][begin : begin + size].view(shape)


class Places(NamedTuple):
    """Where copies of some tensors are made, whenever as much of the room is in use."""

    copies: list[list[Tensor]]
    write: Callable[[Sequence[Term]], None]
    used: tuple[int, ...]  # of the room, then


class Ready:
    """Copies of a group, until the module around it has run."""

    def __init__(self, room: Elsewhere) -> None:
        """Hold none yet."""
        self.copies: dict[int, list[Tensor]] = {}  # by id of the tensor
        self._room, self._used = room, dict(room._used)

    def add(self, params: Sequence[Param], points: Sequence[Point]) -> None:
        """Make the copies of some tensors."""
        copies = self._room.copied(params, points, group=True)
        self.copies = {id(p.tensor): outs for p, outs in zip(params, copies, strict=True)}
        self._room._ready.update(self.copies)

    def back_(self) -> None:
        """Free the room."""
        for one in self.copies:
            del self._room._ready[one]
        self._room._used, self.copies = self._used, {}


class Stand:
    """Copies of some tensors at one point or two, and the way between them and theta."""

    def __init__(self, room: Elsewhere, points: Sequence[Point]) -> None:
        """Hold none yet."""
        self._room, self._points = room, points
        self._used = dict(room._used)
        self._copied: list[tuple[Tensor, Tensor, list[Tensor]]] = []  # as it was, and its copies
        self._saved: list[tuple[Param, Tensor]] = []
        self.lent: tuple[dict[str, Any], PerturbedRows] | None = None

    def found(self, param: Param) -> bool:
        """Take the copies that are ready, if there are any: they are at the points of the look."""
        one = id(param.tensor)
        outs = self._room._ready.get(one)
        if outs is None:
            return False
        self._room._away.add(one)
        self._copied.append((param.tensor, param.tensor.detach(), outs))
        return True

    def add(self, params: Sequence[Param], in_module: bool, group: bool) -> None:
        """Make the copies of some tensors."""
        room = self._room
        room._away.update(id(p.tensor) for p in params)
        ours = [p for p in params if in_module and _exchangeable(p.tensor)]
        for param, outs in zip(ours, room.copied(ours, self._points, group), strict=True):
            self._copied.append((param.tensor, param.tensor.detach(), outs))
        taken = {id(p.tensor) for p in ours}
        for param in (p for p in params if id(p.tensor) not in taken):
            clean = param.tensor.detach()
            first, *_ = [room.take(clean) for _ in self._points]
            self._saved.append((param, first.copy_(clean)))

    def at_(self, index: int) -> None:
        """Stand at a point."""
        if self.lent:  # found before what is registered, by this module alone
            self.lent[0]["weight"] = self.lent[1]
        for tensor, _, outs in self._copied:
            tensor.data = outs[index]
        if self._saved:
            if index:
                self._put_back_()
            self._room.along.add_([p for p, _ in self._saved], self._points[index])

    def back_(self) -> None:
        """Stand at theta, bit for bit, and free the room."""
        if self.lent:
            self.lent[0].pop("weight", None)
        for tensor, clean, _ in self._copied:
            tensor.data = clean
        self._put_back_()
        gone = [t for t, _, _ in self._copied] + [p.tensor for p, _ in self._saved]
        self._room._away.difference_update(map(id, gone))
        self._room._used = self._used
        self._copied, self._saved, self.lent = [], [], None

    def _put_back_(self) -> None:
        if self._saved:
            with torch.inference_mode(False), torch.no_grad():
                for param, saved in self._saved:
                    param.tensor.detach().copy_(saved)


def owners(params: Params) -> dict[nn.Module, tuple[Param, ...]]:
    """Return the modules that hold trained tensors directly, and which (tied ones: each time)."""
    if params.module is None:
        return {}
    by_tensor = {id(p.tensor): p for p in params}
    found: dict[nn.Module, tuple[Param, ...]] = {}
    for module in params.module.modules():
        own = [by_tensor[id(t)] for t in module._parameters.values() if id(t) in by_tensor]
        if own:
            found[module] = tuple(own)
    return found


def groups(
    params: Params, copies: int = 1, ahead: bool = False
) -> dict[nn.Module, tuple[Param, ...]]:
    """Return modules whose parts' copies are made at once, and of which tensors.

    In a call of the noise kernel for one small matrix threads wait more than they work. A group is
    as large a part of the model as has ``copies`` of all its tensors within ``_TOGETHER`` bytes;
    none of it is in a module that holds tensors itself and has parts, and none is made by rows.
    The room is for two of them.
    """
    if params.module is None:
        return {}
    early = {p.key for p in _ahead(params)} if ahead else set()
    own = {
        module: tuple(p for p in some if p.key not in early)
        for module, some in owners(params).items()
    }
    found: dict[nn.Module, tuple[Param, ...]] = {}

    def walk(module: nn.Module) -> None:
        inside = [m for m in module.modules() if own.get(m)]
        if module in inside or len(inside) < 2:
            return
        tensors = {id(p.tensor): p for m in inside for p in own[m]}
        size = copies * sum(_padded(p.tensor.nbytes) for p in tensors.values())
        plain = not any(by_rows(m, own[m]) or any(m.children()) for m in inside)
        if plain and size <= _TOGETHER:
            found[module] = tuple(tensors.values())
            return
        for child in module.children():
            walk(child)

    walk(params.module)
    return found


def room_bytes(params: Params, copies: int = 1, ahead: bool = False, together: bool = True) -> int:
    """Return the room that is taken: for the weights of a module and of those around it.

    ``copies`` are made at a time of a module with trained tensors that is in no other such one;
    within it a copy each. Tensors of no module are all copied, once. With ``ahead`` biases and
    norms are perturbed before the first module runs, all at once: they are many, and small. With
    ``together`` so are those of ``groups``, before the first module of a group.
    """
    some = groups(params, copies, ahead) if together else {}
    return sum(_room(params, owners(params), some, copies, ahead).values())


def _ahead(params: Params) -> list[Param]:
    few = (p for p in params if p.tensor.dim() <= 1 and p.tensor.numel() <= _SMALL)
    return list(few) if params.module is not None else []


def _room(
    params: Params,
    own: dict[nn.Module, tuple[Param, ...]],
    together: dict[nn.Module, tuple[Param, ...]],
    copies: int,
    ahead: bool,
) -> dict[torch.device, int]:
    small = _ahead(params) if ahead else []
    keys = {p.key for p in small}
    own = {module: tuple(p for p in some if p.key not in keys) for module, some in own.items()}
    devices = {p.tensor.device for p in params}

    def bytes_of(tensors: Sequence[Param], device: torch.device) -> int:
        return sum(_padded(p.tensor.nbytes) for p in tensors if p.tensor.device == device)

    def of(module: nn.Module, device: torch.device) -> int:
        mine = own.get(module, ())
        layer = by_rows(module, mine)
        if layer is None or layer.weight.tensor.device != device:
            return bytes_of(mine, device)
        tile = math.prod(layer.tile) * layer.weight.tensor.itemsize
        return _padded(tile) + bytes_of(layer.others, device)

    def deepest(module: nn.Module, device: torch.device, copies: int) -> int:
        if module in together:
            return 2 * copies * bytes_of(together[module], device)  # by turns
        inside = 1 if own.get(module) else copies
        below = (deepest(child, device, inside) for child in module.children())
        return copies * of(module, device) + max(below, default=0)

    if params.module is None:
        return {device: bytes_of(params, device) for device in devices}
    module = params.module
    return {d: bytes_of(small, d) + deepest(module, d, copies) for d in devices}


def _uses(buffer: Tensor) -> int:
    """Return how many tensors share a buffer's memory; 0 where torch does not tell."""
    if _USES is None or is_fake(buffer):
        return 0
    return int(_USES(buffer.untyped_storage()._cdata))


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _exchangeable(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter)
    return plain and not tensor.is_meta and tensor.is_contiguous()
