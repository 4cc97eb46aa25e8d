"""What does not change while a device is in use: asked once, for the record."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pynvml

from bench.devices.answer import Answer, Unavailable
from bench.devices.gauges import Found
from bench.devices.session import Session

_ON = {0: "off", 1: "on"}
_PLAIN = {
    "vbios": ("nvmlDeviceGetVbiosVersion", ""),
    "architecture": ("nvmlDeviceGetArchitecture", "1"),
    "power_limit_watts": ("nvmlDeviceGetEnforcedPowerLimit", "W"),
    "power_limit_default_watts": ("nvmlDeviceGetPowerManagementDefaultLimit", "W"),
    "pcie_generation": ("nvmlDeviceGetCurrPcieLinkGeneration", "1"),
    "pcie_width": ("nvmlDeviceGetCurrPcieLinkWidth", "1"),
    "persistence": ("nvmlDeviceGetPersistenceMode", ""),
    "accounting": ("nvmlDeviceGetAccountingMode", ""),
    "compute_mode": ("nvmlDeviceGetComputeMode", "1"),
    "coherent_memory_node": ("nvmlDeviceGetNumaNodeId", "1"),
}
_SWITCHES = ("persistence", "accounting")


NAMES = (
    *("driver", "nvml", "cuda_driver", "binding", *_PLAIN),
    *("pci", "compute_capability", "ecc", "mig", "sm_clock_max_mhz", "memory_clock_max_mhz"),
)
"""Names of all facts."""


def of_system(session: Session) -> Found:
    """Return versions: driver, NVML, CUDA of the driver, the binding."""
    found: Found = {}
    for name, function in (
        ("driver", "nvmlSystemGetDriverVersion"),
        ("nvml", "nvmlSystemGetNVMLVersion"),
    ):
        found[name] = _answer(session.ask(function), "", function)
    cuda = session.ask("nvmlSystemGetCudaDriverVersion_v2")
    known = not isinstance(cuda, Unavailable)
    version = f"{cuda // 1000}.{cuda % 1000 // 10}" if known else cuda
    found["cuda_driver"] = _answer(version, "", "nvmlSystemGetCudaDriverVersion_v2")
    try:
        binding = metadata.version("nvidia-ml-py")
        found["binding"] = Answer(binding, "", "nvidia-ml-py", "exact")
    except metadata.PackageNotFoundError:
        found["binding"] = Unavailable("the binding is not installed as nvidia-ml-py")
    return found


def of_device(session: Session, handle: Any) -> Found:
    """Return a device's own: place, generation, limits, modes, each or why it can't be told."""
    found: Found = {}
    for name, (function, unit) in _PLAIN.items():
        got = session.ask(function, handle)
        if not isinstance(got, Unavailable):
            got = got / 1e3 if unit == "W" else _ON.get(got, got) if name in _SWITCHES else got
        found[name] = _answer(got, unit, function)
    pci = session.ask("nvmlDeviceGetPciInfo", handle)
    found["pci"] = _answer(pci, "", "nvmlDeviceGetPciInfo", lambda p: _text(p.busId))
    capability = session.ask("nvmlDeviceGetCudaComputeCapability", handle)
    found["compute_capability"] = _answer(
        capability, "", "nvmlDeviceGetCudaComputeCapability", lambda c: f"{c[0]}.{c[1]}"
    )
    for name, function in (("ecc", "nvmlDeviceGetEccMode"), ("mig", "nvmlDeviceGetMigMode")):
        mode = session.ask(function, handle)
        found[name] = _answer(mode, "", function, lambda m: _ON.get(m[0], str(m[0])))
    kinds = {
        "sm_clock_max_mhz": pynvml.NVML_CLOCK_SM,
        "memory_clock_max_mhz": pynvml.NVML_CLOCK_MEM,
    }
    for name, kind in kinds.items():
        function = "nvmlDeviceGetMaxClockInfo"
        found[name] = _answer(session.ask(function, handle, kind), "MHz", function)
    return found


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _answer(got: Any, unit: str, source: str, convert: Any = None) -> Answer[Any] | Unavailable:
    if isinstance(got, Unavailable):
        return got
    return Answer(convert(got) if convert else got, unit, source, "exact")
