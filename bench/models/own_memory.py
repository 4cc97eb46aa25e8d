"""Weights in memory of the process' own, instead of in a mapped file.

On the CPU transformers leaves weights where safetensors mapped them: in the file. Loading looks
free then, the pages are read within the first step, copied one by one when it writes to them, and
lie 8 bytes off the 64-byte lines: afterwards a pass over SmolLM2's weights takes 1.5 times as
long. Both would be charged to the method that is measured.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
from pathlib import Path

import torch
from torch import nn

_MADV_DONTNEED = 4  # of Linux; Python's mmap has it for its own mappings alone


def own_weights_(model: nn.Module) -> None:
    """Copy every weight of a freshly loaded model that lies in a mapped file. Linux; else nothing.

    Holds the weights once, and the largest tensor twice: pages of the file are given back as
    soon as they are copied, and don't count as writable memory any more (``RLIMIT_DATA``).
    """
    mappings = _file_mappings()
    with torch.no_grad():
        for parameter in model.parameters():
            weight = parameter.data
            after = bisect.bisect(mappings, (weight.data_ptr(), 2**64))
            if after and weight.data_ptr() < mappings[after - 1][1]:
                parameter.data = torch.empty_like(weight).copy_(weight)
                _give_back(weight)


def _file_mappings() -> list[tuple[int, int]]:
    """Return begin and end of every range of addresses with a file behind it, in order."""
    maps = Path("/proc/self/maps")
    found = []
    for line in maps.read_text().splitlines() if maps.exists() else []:
        addresses, _, _, _, inode = line.split(maxsplit=5)[:5]
        if inode != "0":
            begin, end = addresses.split("-")
            found.append((int(begin, 16), int(end, 16)))
    return sorted(found)


def _give_back(tensor: torch.Tensor) -> None:
    """Drop the whole pages that the tensor covers from the resident set; none writes there now.

    Read-only, they stop counting as the process' data: a private mapping that may be written to
    counts in full, touched or not, and a memory limit would see the weights twice.
    """
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:
        libc = ctypes.CDLL(None)
        pages = ctypes.c_void_p(begin), ctypes.c_size_t(end - begin)
        libc.madvise(*pages, _MADV_DONTNEED)
        libc.mprotect(*pages, mmap.PROT_READ)
