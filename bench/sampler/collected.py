"""One pass over the trace: every row goes to the series that want it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from bench.devices import throttling
from bench.sampler.series import Borders, Ends, Gaps, Peaks, Spread
from bench.sampler.trace import Row
from bench.sampler.unattributed import Unattributed
from bench.sampler.windows import RUN, Window, seconds_of, stretches

Take = Callable[[int, float], None]
ENERGY_PHASES = ("run", "load", "train", "evaluate")
_POWER = ("power_instant_watts", "power_watts")  # the better one first
_ENDS = (
    *throttling.COUNTERS,
    *("ecc_corrected", "ecc_uncorrected", "temperature_celsius", "accounting_peak_bytes"),
    *("kernel_time_percent", "device_used_bytes", "device_driver_bytes", "process_used_bytes"),
)


class Shape:
    """Where the phases lie, and how far apart readings may be."""

    def __init__(self, windows: Iterable[Window], interval_seconds: float) -> None:
        """Find the window of ``run``; one around all windows where none is called so."""
        windows = list(windows)
        run = [w for w in windows if w.name == RUN] or windows
        self.begin_ns = min(w.begin_ns for w in run)
        self.end_ns = max(w.end_ns for w in run)
        if not any(w.name == RUN for w in windows):
            windows.append(Window(RUN, self.begin_ns, self.end_ns, 0))
        self.borders = Borders(stretches(windows))
        self.seconds = seconds_of(self.borders.stretches)
        # Sums are wanted of few phases: those inside a step would be cut for nothing.
        self._sums = Borders(stretches(w for w in windows if w.name in ENERGY_PHASES))
        self.phases = list(dict.fromkeys(w.name for w in windows))
        self.longest_seconds = max(2.5, 3 * interval_seconds)

    def ends(self) -> Ends:
        """Return a new series of readings at the ends of the run."""
        return Ends(self.begin_ns, self.end_ns)

    def counter(self) -> Spread:
        """Return a new counter by phase."""
        return Spread(self._sums, ENERGY_PHASES, self.longest_seconds, is_counter=True)

    def area(self) -> Spread:
        """Return a new rate by phase."""
        return Spread(self._sums, ENERGY_PHASES, self.longest_seconds, is_counter=False)


class DeviceSeries:
    """Everything about one GPU."""

    def __init__(self, shape: Shape) -> None:
        """Begin with nothing."""
        self.used = Peaks(shape.borders)
        self.process = Peaks(shape.borders)
        self.others = Peaks(shape.borders)
        self.other_bytes = Peaks(shape.borders)
        self.energy = shape.counter()
        self.power = {name: shape.area() for name in _POWER}
        self.busy = shape.area()
        self.gaps = Gaps(shape.begin_ns, shape.end_ns)
        self.ends = {name: shape.ends() for name in _ENDS}
        self.unattributed = Unattributed(lambda t_ns: RUN in shape.borders.at(t_ns))
        self.reasons: Counter[int] = Counter()
        """Clock reasons seen during the run, and how often."""

        def reason(t_ns: int, value: float) -> None:
            if RUN in shape.borders.at(t_ns):
                self.reasons[int(value)] += 1

        nobodys = self.unattributed
        wanted: dict[str, list[Take]] = {
            "device_used_bytes": [self.used.add, self.gaps.add, nobodys.used],
            "process_used_bytes": [self.process.add, nobodys.held],
            "other_processes": [self.others.add],
            "other_bytes": [self.other_bytes.add, nobodys.others],
            "energy_joules": [self.energy.add],
            "kernel_time_percent": [self.busy.add],
            "clock_reasons": [reason],
            **{name: [series.add] for name, series in self.power.items()},
        }
        for name, ends in self.ends.items():
            wanted.setdefault(name, []).append(ends.add)
        self._wanted = wanted

    def add(self, row: Row) -> None:
        """Take the next row of this device."""
        for take in self._wanted.get(row.metric, ()):
            take(row.t_ns, row.value)

    @property
    def polled(self) -> Spread:
        """The power that tells most: instantaneous where a driver has it."""
        return max(self.power.values(), key=lambda series: series.readings)


class Moments:
    """Bytes used on all devices at once: the few moments that matter."""

    def __init__(self, shape: Shape) -> None:
        """Begin with none."""
        self._shape = shape
        self._now: dict[str, int | None] = {}
        self._t_ns = -1
        self._best: dict[str, tuple[int, dict[str, int | None]]] = {}

    def add(self, row: Row) -> None:
        """Take the next row of ``device_used_bytes``."""
        if row.t_ns != self._t_ns:
            self._close()
            self._t_ns = row.t_ns
        self._now[row.device] = int(row.value)

    def rows(self, devices: Iterable[str]) -> list[dict[str, int | None]]:
        """Return the moments with the largest sum and each device's largest value."""
        self._close()
        missing: dict[str, int | None] = dict.fromkeys(devices)
        return [missing | moment for _, moment in self._best.values()]

    def _close(self) -> None:
        moment, self._now = self._now, {}
        if not moment or RUN not in self._shape.borders.at(self._t_ns):
            return
        values = {d: v for d, v in moment.items() if v is not None}
        # Sums are compared among moments at which equally many devices could be read.
        for key, size in (*values.items(), (f"all of {len(values)}", sum(values.values()))):
            if key not in self._best or size > self._best[key][0]:
                self._best[key] = (size, moment)


class Collected:
    """All series of a run."""

    def __init__(self, shape: Shape) -> None:
        """Begin with nothing."""
        self.shape = shape
        self.devices: dict[str, DeviceSeries] = {}
        self.packages: dict[str, Spread] = {}
        self.moments = Moments(shape)
        self.host_gaps = Gaps(shape.begin_ns, shape.end_ns)
        self.cpu = {
            name: shape.counter()
            for name in ("cpu_seconds", "sampler_cpu_seconds", "machine_busy_seconds")
        }
        self.rows = 0
        self.last_ns = 0

    def add(self, row: Row) -> None:
        """Take the next row."""
        self.rows += 1
        self.last_ns = max(self.last_ns, row.t_ns)
        if row.source == "nvml":
            if row.device not in self.devices:
                self.devices[row.device] = DeviceSeries(self.shape)
            self.devices[row.device].add(row)
            if row.metric == "device_used_bytes":
                self.moments.add(row)
        elif row.source == "rapl" and row.metric == "energy_joules":
            if row.device not in self.packages:
                self.packages[row.device] = self.shape.counter()
            self.packages[row.device].add(row.t_ns, row.value)
        elif row.source == "host":
            if row.metric == "rss_bytes":
                self.host_gaps.add(row.t_ns, row.value)
            if row.metric in self.cpu:
                self.cpu[row.metric].add(row.t_ns, row.value)


def collect(rows: Iterable[Row], shape: Shape) -> Collected:
    """Return what the rows say, read once."""
    found = Collected(shape)
    for row in rows:
        found.add(row)
    return found


__all__ = ["ENERGY_PHASES", "Collected", "DeviceSeries", "Shape", "collect"]
