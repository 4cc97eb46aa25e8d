"""A scripted ``libnvidia-ml.so.1``: compiled once a session, played on a virtual clock.

``pynvml`` is the real binding and calls the compiled library, so everything above the C boundary
is what runs on a GPU. A scenario is text, a statement a line::

    driver 580.95.05 | nvml 13.580.95.05 | cuda 13000       (one statement each)
    power_period 0.1      the power sensor holds its value this long, in s
    power_window 0.025    and tells the mean of this much time before (field 186, and PowerUsage)
    power_average 1.0     PowerUsage alone: mean of this much time (newer GPUs)
    energy_period 0.1     the energy counter steps this often
    gpu name=NVIDIA_H100 uuid=GPU-a [bus= total= reserved= cc=9.0 mig=0 ecc=1 acct=0 ...]
    mig <gpu> name=... uuid=MIG-a gi=1 ci=0 total=...       a MIG instance; numbered after the gpus
    at <gpu> <t> mem|power|util|busutil|temp|smclk|memclk|reasons|ecc|eccu <value>     from t on
    linear <gpu> <series>                                   straight lines between its points
    energy_reset <gpu> <t>                                  the counter starts again at 0
    proc <gpu> <pid, 0 = the caller> <t0> <t1 or -> [gpu instance]       graphics: likewise
    pmem <t> <bytes, -1 = not available>                    of the proc above it
    fault <function, * allowed> <gpu or *> <NVML error code> [t0] [t1]     or field:186, or
                                                            field:186:1 for its scope 1
    hang <function> <gpu or *> [t0] [t1]                    the call returns when t1 has come
    legacy_v3                                               32-byte process records: early R535

Numbers of devices are in the order of the scenario, from 0; write the gpus before the migs.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pynvml

from bench.devices.guard import THREAD_NAME

SOURCE = Path(__file__).with_name("scripted_nvml.c")
SONAME = "libnvidia-ml.so.1"
GIB = 1 << 30

ONE_GPU = "gpu name=NVIDIA_H100 uuid=GPU-aaaaaaaa-1111-2222-3333-444444444444 bus=00000000:18:00.0"
TWO_GPUS = f"{ONE_GPU}\ngpu name=NVIDIA_H100 uuid=GPU-bbbbbbbb-1111-2222-3333-444444444444"


def header_folder() -> Path | None:
    """Return the folder of NVIDIA's nvml.h, where the package nvidia-nvml-dev is installed."""
    try:
        files = metadata.distribution("nvidia-nvml-dev").files or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "nvml.h":
            return Path(str(file.locate())).parent
    return None


def build(folder: Path, hidden: Iterable[str] = (), header: Path | None = None) -> Path:
    """Compile the library, without the functions named in ``hidden``, as an older driver has it.

    Args:
        folder: where to put it.
        hidden: names of functions that this library does not export.
        header: folder of NVIDIA's nvml.h to compile against, instead of our own declarations.

    Raises:
        subprocess.CalledProcessError: it does not compile; gcc's words are in ``stderr``.

    """
    names = " ".join(f"{name};" for name in sorted(hidden))
    script = f"{{ global: nvml*; scripted_*; local: {names} *; }};\n"
    digest = hashlib.sha256(f"{script}{header}".encode()).hexdigest()[:12]
    target = folder / digest / SONAME
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    versions = target.with_name("versions")
    versions.write_text(script)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as unfinished:
        pass
    against = [f"-I{header}", "-DHAVE_NVML_H"] if header else []
    subprocess.run(
        [
            *("gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations"),
            *("-shared", "-fPIC", f"-Wl,-soname,{SONAME}", f"-Wl,--version-script={versions}"),
            *(*against, "-o", unfinished.name, str(SOURCE), "-lm"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    os.replace(unfinished.name, target)
    return target


def square(gpu: int, series: str, period: float, values: tuple[float, float], until: float) -> str:
    """Return the statements of a square wave that begins with the first value at time 0."""
    half, lines = period / 2, []
    for i in range(round(until / half)):
        lines.append(f"at {gpu} {i * half!r} {series} {values[i % 2]!r}")
    return "\n".join(lines)


class Clock:
    """The time that the scripted library sees, in seconds."""

    def __init__(self, path: Path) -> None:
        """Start at 0."""
        self.path = path
        self.path.write_bytes(bytes(8))

    @property
    def now(self) -> float:
        """The time."""
        return float(struct.unpack("d", self.path.read_bytes())[0])

    def set(self, t: float) -> None:
        """Jump to ``t``, in place: the library has the file mapped."""
        with self.path.open("r+b") as file:
            file.write(struct.pack("d", t))

    def forward(self, seconds: float) -> None:
        """Let time pass."""
        self.set(self.now + seconds)


class ScriptedNvml:
    """Plays scenarios in this process, one after another."""

    def __init__(self, builds: Path, folder: Path) -> None:
        """Keep compiled libraries in ``builds``, this test's files in ``folder``."""
        self._builds, self._folder = builds, folder
        self.clock = Clock(folder / "clock")
        self.library: ctypes.CDLL | None = None

    def play(self, scenario: str, hidden: Iterable[str] = (), real_time: bool = False) -> Clock:
        """Make ``scenario`` what the next nvmlInit finds, and return its clock, at 0."""
        os.environ.update(self.environment(scenario, real_time))
        if real_time:
            os.environ.pop("NVML_CLOCK", None)
        self.clock.set(0.0)
        self.library = ctypes.CDLL(str(build(self._builds, hidden)))
        forget_library()
        pynvml.nvmlLib = self.library
        return self.clock

    def environment(self, scenario: str, real_time: bool = False) -> dict[str, str]:
        """Write the scenario and return the variables by which the library finds it."""
        path = self._folder / "scenario"
        path.write_text(scenario + "\n")
        clock = {} if real_time else {"NVML_CLOCK": str(self.clock.path)}
        return {"NVML_SCENARIO": str(path), **clock}

    def startup(self, scenario: str, hidden: Iterable[str] = ()) -> dict[str, str]:
        """Return the environment of a new process that loads the library as a driver's."""
        folder = build(self._builds, hidden).parent
        rest = self.environment(scenario, real_time=True)
        return {**os.environ, "LD_LIBRARY_PATH": str(folder), **rest}

    @property
    def inits(self) -> int:
        """Calls of nvmlInit that no nvmlShutdown has answered."""
        assert self.library is not None
        return int(self.library.scripted_inits())

    def restore(self) -> None:
        """Shut down what a test left open, and make binding and environment forget it."""
        self.clock.set(1e9)  # calls that hang return, and what they held up goes on to its end
        for thread in threading.enumerate():
            if thread.name == THREAD_NAME:
                thread.join(10)
                assert not thread.is_alive(), "a test left devices open: close them"
        while self.library is not None and self.inits:
            self.library.nvmlShutdown()
        forget_library()
        for name in ("NVML_SCENARIO", "NVML_CLOCK"):
            os.environ.pop(name, None)


def forget_library() -> None:
    """Make the binding load its library anew."""
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml._nvmlLib_refcount = 0
