"""NVML, opened and asked: every way in which it may fail comes back as a reason in words."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pynvml

from bench.devices.answer import Unavailable

NOT_SUPPORTED, FUNCTION_MISSING, GPU_LOST, WRONG_VERSION = 3, 13, 15, 25
_NOT_THIS_WAY = frozenset({NOT_SUPPORTED, FUNCTION_MISSING, WRONG_VERSION})

_WORDS = {
    1: "NVML is not open",
    2: "NVML was asked something it does not understand",
    NOT_SUPPORTED: "this GPU, its mode or its driver does not support it",
    4: "this user may not ask it (insufficient permissions)",
    6: "the driver knows no such thing",
    7: "NVML's list grew while it was read",
    9: "the NVIDIA driver is not loaded",
    10: "the driver timed out",
    12: "no libnvidia-ml.so.1: no NVIDIA driver is installed, or the container lacks it",
    FUNCTION_MISSING: "this driver is too old to have it",
    14: "the board's infoROM is corrupted",
    GPU_LOST: "the GPU is lost: it has fallen off the bus",
    16: "the GPU needs a reset",
    17: "the operating system blocked the request",
    18: "the loaded driver and the NVML library differ in version: reload the driver or reboot",
    20: "not enough memory on the host",
    WRONG_VERSION: "this driver knows another version of the structure",
    999: "NVML met an unknown error",
}
_FLAGS = {GPU_LOST: "gpu_lost", 16: "gpu_lost", FUNCTION_MISSING: "function_missing"}


class Session:
    """One opened NVML. The library counts openings itself, so sessions may overlap."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self.errors: Counter[tuple[str, int]] = Counter()
        """How often each function answered with which error."""
        self.asking: str | None = None
        """The function that a thread is inside of."""
        self.is_open = False

    def start(self) -> Unavailable | None:
        """Open NVML; return why not, or None."""
        if not hasattr(pynvml, "_nvmlGetFunctionPointer"):
            return Unavailable(
                "the module pynvml here is not NVIDIA's binding: run `pip uninstall pynvml`, "
                "then `pip install --force-reinstall nvidia-ml-py`"
            )
        opened = self.ask("nvmlInit")
        self.is_open = not isinstance(opened, Unavailable)
        return None if self.is_open else opened

    def stop(self) -> None:
        """Close NVML. No other thread may be inside it: the driver frees what they use."""
        if self.is_open:
            self.is_open = False
            self.call("nvmlShutdown", pynvml.nvmlShutdown)

    def ask(self, function: str, *arguments: Any) -> Any:
        """Return what the binding's ``function`` returns, or :class:`Unavailable`."""
        method = getattr(pynvml, function, None)
        if method is None:
            return Unavailable(
                f"{function}: this nvidia-ml-py has no such function; upgrade it",
                flag="function_missing",
                code=FUNCTION_MISSING,
            )
        return self.call(function, lambda: method(*arguments))

    def call(self, function: str, work: Callable[[], Any]) -> Any:
        """Return what ``work`` returns, or why it failed in NVML's ``function``."""
        self.asking = function
        try:
            return work()
        except pynvml.NVMLError as error:
            return self.failed(function, int(error.value))
        except pynvml.NVMLLibraryMismatchError:  # no NVMLError: the binding's own
            return self.failed(function, FUNCTION_MISSING)
        # TypeError: the binding writes None into a structure where an account has no number.
        except (UnicodeDecodeError, TypeError, ctypes.ArgumentError) as error:
            return Unavailable(f"{function} gave what the binding can't read: {error}")
        finally:
            self.asking = None

    def first(self, *ways: tuple[Any, ...]) -> tuple[Any, str]:
        """Ask (function, arguments ...) one after another until one is known here.

        Returns:
            Its answer and its name; the first way's failure where all fail.

        """
        failure: Any = None
        for function, *arguments in ways:
            answer = self.ask(function, *arguments)
            if not (isinstance(answer, Unavailable) and answer.code in _NOT_THIS_WAY):
                return answer, function
            failure = failure or answer
        return failure, ways[0][0]

    def fields(self, handle: Any, wanted: Sequence[tuple[int, int]]) -> list[Any]:
        """Ask for (field, scope) pairs at once; one number or :class:`Unavailable` each."""
        got = self.ask("nvmlDeviceGetFieldValues", handle, list(wanted))
        if isinstance(got, Unavailable):
            return [got] * len(wanted)
        return [self._field(value) for value in got]

    def function(self, name: str) -> Any:
        """Return the C function.

        Raises:
            pynvml.NVMLError: this library does not export it.

        """
        return pynvml._nvmlGetFunctionPointer(name)

    def _field(self, value: Any) -> Any:
        if value.nvmlReturn != 0:
            return self.failed(f"field {value.fieldId}", int(value.nvmlReturn))
        kinds = {
            0: "dVal",
            1: "uiVal",
            2: "ulVal",
            3: "ullVal",
            4: "sllVal",
            5: "siVal",
            6: "usVal",
        }
        kind = kinds.get(value.valueType)
        if kind is None or not hasattr(value.value, kind):
            return Unavailable(f"field {value.fieldId} has a type the binding does not know")
        return getattr(value.value, kind)

    def failed(self, function: str, code: int) -> Unavailable:
        """Count the error and return it in words."""
        self.errors[function, code] += 1
        words = _WORDS.get(code, f"NVML error {code}")
        return Unavailable(f"{function}: {words}", flag=_FLAGS.get(code), code=code)
