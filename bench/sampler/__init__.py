"""Readings between the borders of phases, taken by a small process of its own.

A thread of the measured process gets no turn while a kernel holds the interpreter's lock, so a
helper (``python -m bench.sampler``) reads the driver and ``/proc`` on its own schedule, and writes
every reading to ``trace.csv.gz`` in the run's folder as it comes. What the run's numbers are is
decided afterwards, from the trace and the windows of the phases alone::

    sampler = Sampler(folder, pid=os.getpid(), visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
    sampler.start()
    ...
    sampler.close()
    sampled = summarise(folder, windows)

Imports the standard library, ``bench.devices`` and, where devices are read, the NVML binding.
"""

from bench.sampler.found import Found, Sampled
from bench.sampler.helper import Sampler
from bench.sampler.summary import summarise
from bench.sampler.windows import Window

__all__ = ["Found", "Sampled", "Sampler", "Window", "summarise"]
