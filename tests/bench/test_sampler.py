"""The sampler's loop on a virtual clock: scripted driver in, a run's numbers and doubts out."""

from __future__ import annotations

import json
import math
import os

import pytest
from scripted import GIB, ONE_GPU, TWO_GPUS, square

from bench.sampler import Window, gpus, notes, summarise, trace
from bench.sampler.loop import Loop, Settings

MIB = 1 << 20
GPU = "GPU-aaaaaaaa-1111-2222-3333-444444444444"
OTHER = "GPU-bbbbbbbb-1111-2222-3333-444444444444"
IDLE = f"{ONE_GPU} total={80 * GIB} reserved={600 * MIB} acct=1\nat 0 0 mem 0\nat 0 0 power 100"
LATER = 1_000_000_000_000  # no process has lived before 0


def ns(seconds):
    return LATER + round(seconds * 1e9)


def window(name, begin, end, depth=1):
    return Window(name, ns(begin), ns(end), 0 if name == "run" else depth)


class Play:
    """A scenario, sampled from 0 s on."""

    def __init__(self, nvml, folder, scenario, interval=0.05, pid=None, device="", **changes):
        self.folder, self.clock = folder, nvml.play(scenario, **changes)
        self.pid = os.getpid() if pid is None else pid
        asked = {"device": device} if device else {}
        root = str(folder / "powercap")
        settings = Settings(str(folder), self.pid, None, interval, True, root, **asked)
        self.loop = Loop(settings, clock=lambda: ns(self.clock.now))

    def until(self, t):
        while (due := self.loop.tick()) <= ns(t):
            self.clock.set((due - LATER) / 1e9)
        self.clock.set(t)
        return self

    def marked(self, *times):
        for t in times:
            self.until(t).loop.full()
        return self

    def end(self, t):
        self.until(t).loop.end("stopped")
        return self

    def says(self, *windows, timing=False):
        return summarise(self.folder, windows, timing=timing)

    @property
    def rows(self):
        return list(trace.read(self.folder / trace.TRACE))

    @property
    def notes(self):
        return notes.read(self.folder)


@pytest.fixture
def play(nvml, tmp_path):
    def start(scenario, **settings):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        return Play(nvml, folder, scenario, **settings)

    return start


def number(sampled, metric, phase="run", device=None):
    if metric.startswith(("energy", "gpu_busy")) and device is None:
        device = GPU
    (found,) = (
        f for f in sampled.found if (f.metric, f.phase, f.device) == (metric, phase, device)
    )
    return found


def value(sampled, metric, phase="run", device=None):
    found = number(sampled, metric, phase, device)
    assert (found.value is None) == (found.quality == "unavailable") == bool(found.reason)
    return found.value


def flags(sampled):
    return {doubt.name: doubt for doubt in sampled.doubts}


def of(rows, metric, device=GPU):
    return [(r.t_ns, r.value) for r in rows if (r.metric, r.device) == (metric, device)]


def test_each_value_has_its_own_rhythm_and_none_drifts(play):
    rows = play(IDLE).end(20.0).rows
    for metric, every, device in (
        ("device_used_bytes", 0.05, GPU),
        ("power_instant_watts", 0.05, GPU),
        ("energy_joules", 0.05, GPU),
        ("rss_bytes", 0.05, ""),
        ("other_processes", 0.1, GPU),
        ("kernel_time_percent", 0.1, GPU),
        ("temperature_celsius", 1.0, GPU),
        ("thermal_seconds", 1.0, GPU),
    ):
        times = [t for t, _ in of(rows, metric, device)]
        planned = [ns(k * every) for k in range(round(20 / every) + 1)]
        assert [t for t in planned if min(abs(t - u) for u in times) > 1e3] == [], metric
        assert len(times) <= len(planned) + 2, metric  # the last full reading comes with the end


def test_power_is_not_asked_faster_than_its_sensor_answers(play):
    rows = play(IDLE, interval=0.01).end(2.0).rows
    assert 200 <= len(of(rows, "device_used_bytes")) <= 203
    assert 40 <= len(of(rows, "power_watts")) <= 43
    assert 20 <= len(of(rows, "other_processes")) <= 23


class Slow:
    """A source whose readings take their time."""

    def __init__(self, cost):
        self.now, self.cost, self.times = LATER, cost, []

    def streams(self, interval):
        from bench.sampler.readings import Stream

        return [Stream("slow", interval, self.full)]

    def full(self):
        self.times.append(self.now)
        self.now += round(self.cost(len(self.times)) * 1e9)
        return []


@pytest.mark.parametrize(
    ("cost", "period"), [(0.0005, 0.05), (0.0025, 0.05), (0.01, 0.2), (0.1, 2.0)]
)
def test_reading_takes_a_twentieth_of_the_time_at_most(tmp_path, cost, period):
    source = Slow(lambda n: cost)
    loop = Loop(Settings(str(tmp_path), 1, None), lambda: source.now, lambda s, c: [source])
    while len(source.times) < 40:
        source.now = max(source.now, loop.tick())
    gaps = [b - a for a, b in zip(source.times[10:], source.times[11:], strict=False)]
    assert max(gaps) == pytest.approx(period * 1e9, rel=0.11)
    assert cost / (sum(gaps) / len(gaps) / 1e9) <= 0.05 + 1e-9


def test_one_reading_that_was_held_up_slows_nothing_down(tmp_path):
    source = Slow(lambda n: 0.5 if n == 20 else 0.0001)
    loop = Loop(Settings(str(tmp_path), 1, None), lambda: source.now, lambda s, c: [source])
    while len(source.times) < 60:
        source.now = max(source.now, loop.tick())
    gaps = [b - a for a, b in zip(source.times[1:], source.times[2:], strict=False)]
    assert sorted(gaps)[-2:] == [50_000_000, 550_000_000]  # no readings are made up for
    assert all((t - source.times[1]) % 50_000_000 == 0 for t in source.times[1:])


RAMP = f"""{IDLE}
proc 0 0 2 -
pmem 2 {1 * GIB}
pmem 5 {3 * GIB}
pmem 7 {2 * GIB}
pmem 20 {5 * GIB}
at 0 2 mem {1 * GIB}
at 0 5 mem {3 * GIB}
at 0 7 mem {2 * GIB}
at 0 20 mem {5 * GIB}
at 0 0 temp 40
at 0 2 temp 70
at 0 29 temp 75
"""


def test_peaks_belong_to_the_phases_they_came_in(play):
    run = play(RAMP).marked(1, 31).end(32)
    said = run.says(
        window("run", 1, 31), window("load", 1, 4), window("train", 6, 18),
        window("evaluate", 18, 30),
    )  # fmt: skip
    for metric in ("device_used_peak_bytes", "device_process_peak_bytes"):
        peaks = {p: value(said, metric, p, GPU) for p in ("run", "load", "train", "evaluate")}
        assert peaks == {"run": 5 * GIB, "load": GIB, "train": 3 * GIB, "evaluate": 5 * GIB}
    assert number(said, "device_used_peak_bytes", "run", GPU).quality == "sampled"
    assert value(said, "device_used_baseline_bytes", "run", GPU) == 0
    account = number(said, "device_process_accounting_peak_bytes", "run", GPU)
    assert (account.value, account.quality) == (5 * GIB, "exact")
    assert value(said, "temperature_start_celsius", "run", GPU) == 40
    assert value(said, "temperature_end_celsius", "run", GPU) == 75
    assert set(flags(said)) == set()  # load lasts 3 s, too short to flag the run for


def test_a_phase_without_a_reading_has_no_peak_and_says_so(play):
    said = play(RAMP).end(10).says(window("run", 1, 9), window("update", 3.01, 3.02, 2))
    found = number(said, "device_used_peak_bytes", "update", GPU)
    assert found.value is None and "not read while" in found.reason


@pytest.mark.parametrize("start", [0.0, 0.03, 0.07])
def test_energy_under_a_square_wave_is_the_counters_and_polling_stands_beside_it(play, start):
    wave = square(0, "power", 1.0, (100.0, 500.0), 40)
    run = play(f"{IDLE}\n{wave}\npower_window 0.025\npower_period 0.1\nenergy_period 0.1")
    run.marked(2 + start, 22 + start).end(24)
    said = run.says(window("run", 2 + start, 22 + start), window("train", 4, 14))
    assert value(said, "energy_joules") == pytest.approx(6000, rel=0.01)  # a step is 50 J
    assert value(said, "energy_joules", "train") == pytest.approx(3000, rel=0.02)
    for phase in ("run", "train"):  # the borders lie between readings, the run's as well
        assert number(said, "energy_joules", phase).quality == "sampled"
    assert number(said, "energy_joules").source == "nvmlDeviceGetTotalEnergyConsumption"
    assert value(said, "energy_polled_joules") == pytest.approx(6000, rel=0.05)
    assert not {"energy_counter_vs_polled", "energy_window_short"} & set(flags(said))


def test_a_sensor_that_looks_at_the_wrong_moments_is_told_by_the_counter(play):
    wave = square(0, "power", 0.2, (100.0, 500.0), 30)
    run = play(f"{IDLE}\n{wave}\npower_window 0.025\npower_period 0.2\nenergy_period 0.1")
    said = run.end(24).says(window("run", 2, 22))
    assert value(said, "energy_joules") == pytest.approx(6000, rel=0.01)
    assert abs(value(said, "energy_polled_joules") - 6000) > 600
    doubt = flags(said)["energy_counter_vs_polled"]
    assert doubt.severity == "suspect" and "run: the counter says" in doubt.text


def test_polled_joules_come_from_the_power_at_once_where_there_is_one(play):
    step = "power_average 1.0\nat 0 10 power 500"
    said = play(f"{IDLE}\n{step}").end(14).says(window("run", 1, 13), window("train", 10, 11))
    assert value(said, "energy_polled_joules", "train") == pytest.approx(500, rel=0.1)
    none = "fault field:186 0 3\nfault field:186:1 0 3"
    older = play(f"{IDLE}\n{step}\n{none}").end(14)
    said = older.says(window("run", 1, 13), window("train", 10, 11))
    assert value(said, "energy_polled_joules", "train") == pytest.approx(300, rel=0.1)


def test_the_energy_of_thousands_of_short_windows_adds_up(play):
    wave = square(0, "power", 2.0, (100.0, 400.0), 30)
    run = play(f"{IDLE}\n{wave}\nenergy_period 0.001").end(30)
    # 1000 trains of 4 ms, a sixth of the time; evenly over both halves of the wave.
    steps = [window("train", 2 + k * 0.024, 2 + k * 0.024 + 0.004) for k in range(1000)]
    said = run.says(window("run", 1, 29), *steps)
    assert value(said, "energy_joules", "train") == pytest.approx(4 * 250, rel=0.02)
    assert value(said, "energy_polled_joules", "train") == pytest.approx(4 * 250, rel=0.05)
    assert "energy_window_short" not in flags(said)  # train had 4 s, and the run 28
    short = run.says(window("run", 1, 5))
    assert "run: 4.00 s are less than 60 steps" in flags(short)["energy_window_short"].text


def test_a_counter_that_goes_backwards_is_no_energy(play):
    run = play(f"{IDLE}\nenergy_reset 0 12.5").end(30)
    said = run.says(window("run", 1, 29), window("load", 2, 10), window("train", 10, 20))
    assert value(said, "energy_joules", "load") == pytest.approx(800, rel=0.02)
    for phase in ("run", "train"):
        assert value(said, "energy_joules", phase) is None
        assert "fell from" in number(said, "energy_joules", phase).reason
        assert value(said, "energy_polled_joules", phase) > 900  # what was polled stands
    assert flags(said)["energy_counter_reset"].severity == "invalid"


def test_a_board_without_a_counter_has_polled_joules_alone(play):
    run = play(f"{IDLE}\nfault nvmlDeviceGetTotalEnergyConsumption 0 3").end(10)
    said = run.says(window("run", 1, 9))
    found = number(said, "energy_joules")
    assert found.value is None and "does not support it" in found.reason
    assert value(said, "energy_polled_joules") == pytest.approx(800, rel=0.01)


def test_thirty_and_forty_at_different_times_are_fifty_at_once(play):
    scenario = f"""{TWO_GPUS}
at 0 0 mem {30 * GIB}
at 0 5 mem {10 * GIB}
at 1 0 mem 0
at 1 5 mem {40 * GIB}
at 0 0 power 100
at 1 0 power 200
at 0 0 util 50
fault nvmlDeviceGetMemoryInfo* 1 999 7 8"""
    said = play(scenario).end(12).says(window("run", 1, 11))
    assert value(said, "device_used_max_gpu_bytes") == 40 * GIB
    assert value(said, "device_used_peak_of_sum_bytes") == 50 * GIB
    assert value(said, "device_used_sum_of_peaks_bytes") == 70 * GIB
    assert value(said, "energy_joules", device=GPU) == pytest.approx(1000, rel=0.02)
    assert value(said, "energy_joules", device=OTHER) == pytest.approx(2000, rel=0.02)
    assert value(said, "gpu_busy_share", device=GPU) == pytest.approx(0.5)
    assert value(said, "gpu_busy_share", device=OTHER) == 0


NEIGHBOUR = f"""{TWO_GPUS}
at 0 0 power 100
at 1 0 power 400
at 1 0 util 90
at 1 0 mem {40 * GIB}
at 1 4 mem {60 * GIB}
at 1 4 ecc 9
proc 1 4242 0 -
"""
MINE = f"proc 0 0 1 -\npmem 1 {GIB}\nat 0 1 mem {GIB}"


@pytest.mark.parametrize(
    ("mine", "device"), [(MINE, "cpu"), (f"proc 0 0 1 -\npmem 1 -1\nat 0 1 mem {GIB}", "cuda:0"),
                         (f"at 0 1 mem {GIB}", "cuda")],
)  # fmt: skip
def test_a_stranger_on_a_gpu_that_the_run_does_not_use_is_not_in_its_record(play, mine, device):
    run = play(f"{NEIGHBOUR}\n{mine}", device=device).end(12)
    said = run.says(window("run", 1, 11))
    assert {f.device for f in said.found if f.device and f.device.startswith("GPU-")} == {GPU}
    assert not {"other_process", "not_idle_at_start", "ecc_errors"} & set(flags(said))
    assert not [f for f in said.found if "sum" in f.metric or "max_gpu" in f.metric]
    assert not [d for d in said.doubts if OTHER in d.text]
    assert [v for _, v in of(run.rows, "device_used_bytes", OTHER)]  # the trace keeps it
    assert run.notes["device"] == device


def test_a_gpu_by_its_number_is_the_one_of_that_number(play):
    said = play(f"{NEIGHBOUR}\nat 0 1 mem {GIB}", device="cuda:1").end(12)
    said = said.says(window("run", 1, 11))
    assert {f.device for f in said.found if f.device} == {OTHER}
    assert "other_process" in flags(said)


def test_where_nothing_tells_which_gpu_a_run_uses_all_are_its_own(play):
    run = play(f"{NEIGHBOUR}\nat 0 1 mem {GIB}").end(12)
    said = run.says(window("run", 1, 11))
    assert {f.device for f in said.found if f.device} == {GPU, OTHER}
    assert "other_process" in flags(said)


def test_two_gpus_of_three_are_added_up(play):
    third = "gpu name=NVIDIA_H100 uuid=GPU-cccccccc-1111-2222-3333-444444444444"
    mine = f"proc 0 0 1 -\npmem 0 {GIB}\nproc 1 0 1 -\npmem 0 {GIB}\nproc 2 4242 0 -"
    memory = f"at 0 0 mem {GIB}\nat 1 0 mem {2 * GIB}\nat 2 0 mem {50 * GIB}"
    # The third is at its largest when the other two are not.
    later = f"at 0 6 mem {4 * GIB}\nat 2 6 mem {GIB}"
    said = play(f"{TWO_GPUS}\n{third}\n{mine}\n{memory}\n{later}").end(12)
    said = said.says(window("run", 1, 11))
    assert value(said, "device_used_max_gpu_bytes") == 4 * GIB
    assert value(said, "device_used_peak_of_sum_bytes") == 6 * GIB
    assert value(said, "device_used_sum_of_peaks_bytes") == 6 * GIB
    assert "other_process" not in flags(said)


def test_one_gpu_has_no_sums(play):
    said = play(IDLE).end(2).says(window("run", 0.5, 1.5))
    assert not [f for f in said.found if "sum" in f.metric or "max_gpu" in f.metric]


def test_busy_share_is_the_mean_over_time_not_over_readings(play):
    run = play(f"{IDLE}\nat 0 5 util 80").marked(*(2 + k * 0.01 for k in range(200))).end(12)
    assert value(run.says(window("run", 1, 11)), "gpu_busy_share") == pytest.approx(0.48, abs=0.01)


def test_an_intruder_of_300_ms_makes_the_run_invalid(play):
    run = play(f"{IDLE}\nproc 0 4242 5.0 5.3\npmem 0 {GIB}\nat 0 5 mem {GIB}\nat 0 5.3 mem 0")
    run.end(10)
    doubt = flags(run.says(window("run", 1, 9)))["other_process"]
    assert doubt.severity == "invalid" and "1 other processes" in doubt.text
    assert "1024 MiB" in doubt.text
    assert "other_process" not in flags(run.says(window("run", 6, 9)))  # it had gone


def test_processes_that_the_run_started_are_its_own(play):
    import subprocess
    import sys

    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        said = play(f"{IDLE}\nproc 0 0 0 -\nproc 0 {child.pid} 0 -").end(3)
        assert "other_process" not in flags(said.says(window("run", 1, 2)))
    finally:
        child.communicate(b"\n")


def test_memory_that_nobody_claims_is_told(play):
    mine = f"proc 0 0 1 -\npmem 1 {GIB}\npmem 3.04 {8 * GIB}\npmem 3.06 {GIB}"
    # Memory is read while the 8 GiB are held, process lists before and after.
    honest = f"at 0 1 mem {GIB}\nat 0 3.04 mem {8 * GIB}\nat 0 3.06 mem {GIB}"
    said = play(f"{IDLE}\n{mine}\n{honest}").end(6).says(window("run", 0.5, 5.5))
    assert value(said, "device_used_peak_bytes", device=GPU) == 8 * GIB
    assert "unattributed_memory" not in flags(said)
    hidden = f"{honest}\nat 0 4 mem {2 * GIB}"
    said = play(f"{IDLE}\n{mine}\n{hidden}").end(6).says(window("run", 0.5, 5.5))
    doubt = flags(said)["unattributed_memory"]
    assert doubt.severity == "suspect" and "1024 MiB" in doubt.text


def test_a_device_in_use_before_the_run_is_told(play):
    busy = f"{IDLE}\nat 0 0 util 30\nat 0 0 mem {GIB}\nproc 0 4242 0 0.5\npmem 0 {GIB}"
    doubt = flags(play(busy).end(5).says(window("run", 1, 4)))["not_idle_at_start"]
    assert "30 %" in doubt.text and "1024 MiB" in doubt.text
    kept = f"{IDLE}\nat 0 0 util 2\nat 0 0 mem {200 * MIB}"
    assert "not_idle_at_start" not in flags(play(kept).end(5).says(window("run", 1, 4)))


def test_a_throttle_of_200_ms_between_readings_is_told(play):
    reasons = "at 0 0 reasons 0\nat 0 3.3 reasons 64\nat 0 3.5 reasons 4\nat 0 3.6 reasons 0"
    run = play(f"{IDLE}\n{reasons}").end(8)
    assert not [v for _, v in of(run.rows, "clock_reasons") if v]  # no reading saw it
    said = run.says(window("run", 1, 7))
    assert "hardware thermal held for 0.200 s" in flags(said)["throttled"].text
    assert flags(said)["power_capped"].severity == "info"
    assert flags(run.says(window("run", 1, 7), timing=True))["power_capped"].severity == "suspect"
    assert "throttled" not in flags(run.says(window("run", 5, 7)))


def test_without_the_counters_a_throttle_is_what_readings_saw(play):
    reasons = "at 0 0 reasons 1\nat 0 3.5 reasons 64\nat 0 5.5 reasons 1"
    hidden = {"nvmlDeviceGetFieldValues", "nvmlDeviceGetViolationStatus"}
    said = play(f"{IDLE}\n{reasons}", hidden=hidden).end(8).says(window("run", 1, 7))
    assert "hardware thermal slowdown in 2 of" in flags(said)["throttled"].text
    assert "function_missing" in flags(said)


def test_memory_errors_that_came_during_the_run_are_told(play):
    run = play(f"{IDLE}\nat 0 0 ecc 3\nat 0 5 ecc 7").end(10)
    assert "4 corrected" in flags(run.says(window("run", 1, 9)))["ecc_errors"].text
    assert "ecc_errors" not in flags(run.says(window("run", 7, 9)))


def test_a_gpu_lost_in_mid_phase_leaves_the_numbers_of_before(play):
    run = play(f"{RAMP}\nfault * 0 15 15").end(30)
    said = run.says(window("run", 1, 29), window("load", 2, 10), window("train", 12, 28))
    doubt = flags(said)["gpu_lost"]
    assert doubt.severity == "invalid" and "14.0 s into the run" in doubt.text
    assert value(said, "device_used_peak_bytes", "load", GPU) == 3 * GIB
    assert value(said, "device_used_peak_bytes", "run", GPU) == 3 * GIB
    assert value(said, "energy_joules", "load") == pytest.approx(800, rel=0.02)
    missing = number(said, "energy_joules", "train")
    assert missing.value is None and "fallen off the bus" in missing.reason
    assert flags(said)["sampling_gap"].severity == "suspect"
    assert value(said, "sampling_gap_max_seconds", device=GPU) == pytest.approx(14, abs=0.2)
    assert value(said, "sampling_gap_max_seconds") < 0.2  # the host was read on
    assert run.notes["errors"]


def test_a_gpu_lost_for_a_while_comes_back(play):
    run = play(f"{IDLE}\nfault * 0 15 10 14").end(30)
    said = run.says(window("run", 1, 29), window("load", 9, 11), window("train", 11, 13),
                    window("evaluate", 15, 25))  # fmt: skip
    assert "gpu_lost" in flags(said)
    assert value(said, "energy_joules") == pytest.approx(2800, rel=0.01)
    assert value(said, "energy_joules", "evaluate") == pytest.approx(1000, rel=0.02)
    for phase in ("load", "train"):
        assert value(said, "energy_joules", phase) is None
    assert value(said, "energy_polled_joules") is None
    reason = number(said, "energy_polled_joules", "train").reason
    assert "of the 2.00 s of train" in reason and "fallen off the bus" in reason


def test_a_driver_that_hangs_leaves_the_host_readings(play):
    run = play(f"{IDLE}\nhang nvmlDeviceGetPowerUsage 0 2.03 6")
    run.loop._sources[2].devices.guard.seconds = 0.05
    run.until(3)
    host = [t for t, _ in of(run.rows, "rss_bytes", "") if ns(2.1) < t]
    assert len(host) >= 15
    run.until(5.9)
    run.clock.set(6.5)
    run.loop._sources[2].devices.guard._late.done.wait(5)
    said = run.end(10).says(window("run", 1, 9))
    assert "nvmlDeviceGetPowerUsage did not answer" in flags(said)["nvml_hangs"].text
    assert value(said, "sampling_gap_max_seconds", device=GPU) > 3
    assert value(said, "device_used_peak_bytes", "run", GPU) == 0
    assert value(said, "energy_joules") == pytest.approx(800, rel=0.02)


@pytest.mark.parametrize(("code", "words"), [(9, "not loaded"), (12, "no lib"), (18, "differ")])
def test_an_nvml_that_does_not_start_is_unavailable_in_every_number(play, code, words):
    run = play(f"{ONE_GPU}\nfault nvmlInit* * {code}").end(3)
    said = run.says(window("run", 1, 2))
    missing = [f for f in said.found if f.metric.startswith(("device_", "energy_", "gpu_"))]
    assert len(missing) >= 6
    assert all(f.value is None and words in f.reason for f in missing)
    assert value(said, "sampling_gap_p50_seconds") == pytest.approx(0.05)


def test_a_mig_instance_has_memory_and_no_energy(play):
    mig = f"{ONE_GPU} mig=1\nmig 0 name=x uuid=MIG-a gi=1 ci=0 total={10 * GIB}\nat 1 0 mem {GIB}"
    said = play(mig).end(5).says(window("run", 1, 4))
    assert value(said, "device_used_peak_bytes", device="MIG-a") == GIB
    assert "whole board" in number(said, "energy_joules", device="MIG-a").reason
    assert flags(said)["energy_not_attributable"].severity == "info"


def test_own_memory_that_the_driver_does_not_tell_is_unavailable(play):
    said = play(f"{IDLE}\nproc 0 0 0 -\npmem 0 -1").end(5).says(window("run", 1, 4))
    assert value(said, "device_process_peak_bytes", device=GPU) is None
    assert flags(said)["own_memory_unreadable"].severity == "info"


def test_a_list_that_hides_the_run_is_told(play):
    said = play(f"{IDLE}\nat 0 2 mem {GIB}").end(5).says(window("run", 1, 4))
    assert value(said, "device_process_peak_bytes", device=GPU) is None
    assert flags(said)["process_list_filtered"].severity == "info"


def test_in_a_container_the_newcomer_that_does_not_exist_here_is_the_run(play, monkeypatch):
    monkeypatch.setattr(gpus, "uses_cuda", lambda pid: pid == os.getpid())
    host = f"{IDLE}\nproc 0 4100001 2 -\npmem 2 {GIB}\nat 0 2 mem {GIB}"
    said = play(host).end(5).says(window("run", 1, 4))
    assert value(said, "device_process_peak_bytes", device=GPU) == GIB
    assert "taken for it" in flags(said)["own_memory_unreadable"].text
    assert "other_process" not in flags(said)
    before = f"{IDLE}\nproc 0 4100001 0 -\npmem 0 {GIB}"
    assert "other_process" in flags(play(before).end(5).says(window("run", 1, 4)))


@pytest.mark.parametrize(
    "scene",
    [f"proc 0 4100001 2 -\npmem 2 {GIB}\nat 0 2 mem {6 * GIB}",  # of 6 GiB it holds 1
     f"proc 0 4100001 2 -\nproc 0 4100002 2 -\npmem 2 {GIB}\nat 0 2 mem {2 * GIB}",
     f"proc 0 4100001 2 -\npmem 2 -1\nat 0 2 mem {GIB}"],
)  # fmt: skip
def test_in_a_container_a_newcomer_that_does_not_fit_is_not_the_run(play, monkeypatch, scene):
    monkeypatch.setattr(gpus, "uses_cuda", lambda pid: True)
    said = play(f"{IDLE}\n{scene}").end(8).says(window("run", 1, 7))
    assert value(said, "device_process_peak_bytes", device=GPU) is None
    assert "taken for it" not in str(said.doubts)
    # One of two is a stranger for sure; of one nobody knows.
    assert ("other_process" in flags(said)) == ("4100002" in scene)


@pytest.mark.parametrize(("begin", "cuda"), [(2, 3.0), (14, 1.0)])
def test_in_a_container_who_came_before_cuda_or_long_after_it_is_a_stranger(
    play, monkeypatch, begin, cuda
):
    scene = f"{IDLE}\nproc 0 4100001 {{0}} -\npmem {{0}} {GIB}\nat 0 {{0}} mem {GIB}"
    run = None
    monkeypatch.setattr(gpus, "uses_cuda", lambda pid: run is not None and run.clock.now >= cuda)
    run = play(scene.format(begin))
    said = run.end(20).says(window("run", 1, 19))
    assert value(said, "device_process_peak_bytes", device=GPU) is None
    assert flags(said)["other_process"].severity == "invalid"


def test_in_a_container_the_run_is_found_beside_who_was_there_before(play, monkeypatch):
    run = None
    monkeypatch.setattr(gpus, "uses_cuda", lambda pid: run is not None and run.clock.now >= 3)
    before = f"proc 0 4100001 0 2.5\npmem 0 {GIB}\nat 0 0 mem {GIB}\nat 0 2.5 mem 0"
    run = play(f"{IDLE}\n{before}\nproc 0 4100002 4 -\npmem 4 {3 * GIB}\nat 0 4 mem {3 * GIB}")
    said = run.end(10).says(window("run", 3, 9))
    assert value(said, "device_process_peak_bytes", device=GPU) == 3 * GIB
    assert "other_process" not in flags(said)


def test_a_run_that_began_before_the_sampler_has_no_baseline(play):
    busy = f"{IDLE}\nat 0 0 util 90\nat 0 0 mem {GIB}\nproc 0 4242 0 0.5\npmem 0 {GIB}"
    run = play(busy)
    run.loop.late()
    said = run.end(5).says(window("run", 1, 4))
    found = number(said, "device_used_baseline_bytes", device=GPU)
    assert found.value is None and "after the run had begun" in found.reason
    assert flags(said)["sampler_late"].severity == "suspect"
    assert "not_idle_at_start" not in flags(said)
    assert value(said, "device_used_peak_bytes", device=GPU) == GIB


def test_accounting_that_is_off_is_told_with_what_switches_it_on(play):
    said = play(IDLE.replace("acct=1", "acct=0")).end(5).says(window("run", 1, 4))
    assert "nvidia-smi -am 1" in flags(said)["accounting_off"].text
    assert value(said, "device_process_accounting_peak_bytes", device=GPU) is None


def test_the_notes_say_what_was_asked_of_whom(play):
    run = play(IDLE).end(2)
    said = run.notes
    assert (said["interval_seconds"], said["pid"]) == (0.05, os.getpid())
    (device,) = said["devices"]
    assert device["uuid"] == GPU and device["facts"]["power_limit_watts"] == 700.0
    assert device["capabilities"]["device_used_bytes"]["works"] is True
    assert device["processes_before"] == []
    assert said["ended"]["why"] == "stopped" and said["trace"]["problem"] is None
    assert "RAPL" in said["rapl"]["reason"]
    assert said["cpu_seconds"] > 0
    json.dumps(said, allow_nan=False)


def test_the_end_closes_nvml_after_the_last_reading(play, nvml):
    run = play(IDLE).until(1)
    assert nvml.inits == 1
    run.end(2)
    assert nvml.inits == 0
    assert of(run.rows, "energy_joules")[-1][0] == ns(2)
    assert not [r for r in run.notes["refusals"] if "closed" in r["reason"]]


def test_no_row_is_anything_but_a_number(play):
    rows = play(f"{RAMP}\nfault *Clock* 0 3\nfault * 0 15 2 3").end(5).rows
    assert {r.source for r in rows} == {"host", "nvml"}
    assert all(math.isfinite(r.value) for r in rows)
    assert not of(rows, "sm_clock_mhz")
    assert [r.t_ns for r in rows] == sorted(r.t_ns for r in rows)


def test_a_folder_that_was_never_sampled_says_nothing(tmp_path):
    said = summarise(tmp_path, [window("run", 0, 1)])
    assert said.found == [] and said.doubts == []
