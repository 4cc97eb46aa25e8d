"""Energy under known power: the counter is right to a step, polling may not be, and is told."""

from __future__ import annotations

import pytest
from scripted import ONE_GPU, square

from bench.devices import energy
from bench.devices.nvml import Answer, Unavailable, open_devices

SENSOR = "power_period 0.1\npower_window 0.025\nenergy_period 0.1"


def measured(nvml, scenario, start, seconds, poll):
    """Return the energy of a window, polled every ``poll`` seconds."""
    clock = nvml.play(scenario)
    with open_devices() as devices:
        (device,) = devices
        clock.set(start)
        before, samples = device.energy_joules(), []
        for i in range(round(seconds / poll) + 1):
            clock.set(start + i * poll)
            watts = device.read(("power",))["power_instant_watts"].value
            samples.append((clock.now, watts))
        return energy.window(before, device.energy_joules(), seconds, samples)


@pytest.mark.parametrize("phase", [0.0, 0.03, 0.08])
def test_the_counter_is_right_to_a_step_at_every_phase_of_a_square_wave(nvml, phase):
    wave = square(0, "power", 1.0, (400.0, 100.0), until=12.0)
    found = measured(nvml, f"{SENSOR}\n{ONE_GPU}\n{wave}", 1.0 + phase, 8.0, poll=0.05)
    assert found.counted.quality == "exact"
    assert abs(found.counted.value - 8 * 250.0) <= 400.0 * energy.STEP_SECONDS
    assert abs(found.polled.value - 8 * 250.0) <= 0.05 * 8 * 250.0
    assert found.doubts == ()


def test_a_load_in_step_with_the_sensor_fools_polling_and_is_told(nvml):
    """25 ms watched of every 100 ms, a load of 10 Hz: the sensor sees one half of it only."""
    wave = square(0, "power", 0.1, (500.0, 100.0), until=10.0)
    found = measured(nvml, f"{SENSOR}\n{ONE_GPU}\n{wave}", 1.0, 8.0, poll=0.05)
    assert abs(found.counted.value - 8 * 300.0) < 1.0
    assert found.polled.value == pytest.approx(8 * 100.0)
    assert [doubt.name for doubt in found.doubts] == ["energy_counter_vs_polled"]


@pytest.mark.parametrize("watts", [300.0, 100.0])
def test_constant_power_is_power_times_time(nvml, watts):
    clock = nvml.play(f"{ONE_GPU}\nat 0 0 power {watts}")
    with open_devices() as devices:
        before = devices[0].energy_joules()
        clock.forward(2.0)
        found = energy.window(before, devices[0].energy_joules(), 2.0)
    assert found.counted.value == pytest.approx(2.0 * watts)
    assert [doubt.name for doubt in found.doubts] == ["energy_window_short"]
    assert isinstance(found.polled, Unavailable)


def test_a_ramp_is_integrated_exactly(nvml):
    clock = nvml.play(f"{ONE_GPU}\nlinear 0 power\nat 0 0 power 100\nat 0 10 power 300")
    with open_devices() as devices:
        before = devices[0].energy_joules().value
        clock.set(10.0)
        assert devices[0].energy_joules().value - before == pytest.approx(2000.0, abs=0.002)


def test_a_counter_that_falls_is_no_energy(nvml):
    found = measured(
        nvml, f"{ONE_GPU}\nat 0 0 power 200\nenergy_reset 0 5", start=1.0, seconds=8.0, poll=1.0
    )
    assert found.counted.value is None and found.counted.flag == "energy_counter_reset"
    assert found.polled.value == pytest.approx(1600.0)
    assert [(d.name, d.severity) for d in found.doubts] == [("energy_counter_reset", "invalid")]


def test_a_counter_that_stands_still_is_no_energy():
    reading = Answer(5.0, "J", "a", "exact")
    short, long = (energy.window(reading, reading, seconds) for seconds in (0.05, 10.0))
    assert short.counted.flag == "energy_window_short" and short.counted.value is None
    assert long.counted.flag == "energy_counter_reset" and long.counted.value is None


def test_no_counter_is_its_reason_whichever_end_lacks_it():
    reading, lost = Answer(5.0, "J", "a", "exact"), Unavailable("lost", flag="gpu_lost")
    assert energy.window(reading, lost, 10.0).counted is lost
    assert energy.window(lost, reading, 10.0).counted is lost


def test_a_counter_at_zero_is_no_counter(nvml):
    nvml.play(f"{ONE_GPU} energy_start_mj=0")
    with open_devices() as devices:
        assert "does not count" in devices[0].energy_joules().reason
