"""Messages of real allocators become statuses and bytes."""

from __future__ import annotations

import pytest
import torch

from bench import failures
from bench.records import UserError

CPU = (
    "[enforce fail at alloc_cpu.cpp:120] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 154140672 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB"


@pytest.mark.parametrize(
    ("error", "status", "size"),
    [
        (RuntimeError(CPU), "out_of_memory", 154140672),
        (torch.OutOfMemoryError(CUDA), "out_of_memory", 5 * 2**29),
        (MemoryError("Unable to allocate 64.0 MiB for an array"), "out_of_memory", 64 * 2**20),
        (MemoryError(), "out_of_memory", None),
        (RuntimeError("std::bad_alloc"), "out_of_memory", None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out_of_memory", None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "failed", None),
        (UserError("seq_len is longer than the context"), "unsupported", None),
    ],
)
def test_errors_are_classified(error, status, size):
    assert failures.status_of(error) == status
    assert failures.bytes_requested(error) == size
    assert failures.first_line(error)


@pytest.mark.parametrize(
    ("limit", "in_use", "on_device", "free"),
    [
        (900, 700, None, 200),  # a limit on the CPU
        (900, 950, None, 0),
        (None, 700, 80, 80),  # a device
        (900, 700, 80, 80),  # the wall that is nearer
        (900, 850, 80, 50),
        (None, None, None, None),
        (900, None, None, None),  # never a guess
    ],
)
def test_what_was_free_is_told_where_it_is_known(limit, in_use, on_device, free):
    assert failures.bytes_free(limit, in_use, on_device) == free


def test_a_killed_process_says_by_what():
    assert failures.of_exit(-9, killed_by_kernel=True)[0] == "out_of_memory"
    assert failures.of_exit(-9, killed_by_kernel=False) == (
        "failed",
        "the process was ended by SIGKILL; see the log",
    )
    assert failures.of_exit(-11, False)[1].count("SIGSEGV")
    assert failures.of_exit(1, False)[1].count("code 1")
