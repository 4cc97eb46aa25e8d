"""Hours, joules, time by phase and sampling: sums, reasons, and silence where nothing is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reports import units
from reports.costs import of_job
from reports.load import load
from reports.main import build
from reports.table import Cell, Table
from reports.tables import hours, phase_times, sampling

H100 = "NVIDIA H100 80GB HBM3"


def rows(table: Table) -> list[dict[str, Cell]]:
    return [dict(zip((c.key for c in table.columns), row, strict=True)) for row in table.rows]


def gone(kit: Any, metric: str, reason: str, **changes: Any) -> Any:
    given = dict(quality="unavailable", reason=reason, source="none")
    return kit.number(metric, "run", None, **{**given, **changes})


@pytest.fixture
def on_gpus(make_record: Any, kit: Any) -> Any:
    """Give a run on two GPUs, with more measurements."""

    def run(*more: Any, seed: int = 0, train: float = 0.5, **changes: Any) -> Any:
        numbers = [
            kit.number("gpu_hours_reserved", "run", 2.0, source="wall time x 2"),
            kit.number("gpu_hours_train", "run", train, source="step seconds x 2"),
            gone(kit, "gpu_hours_to_target", "not reached: the best is 0.7"),
            kit.number("gpu_hours_busy", "run", 0.25, quality="sampled", source="utilisation"),
        ]
        given = dict(
            environment=kit.environment(devices=[H100, H100]),
            measurements=[*numbers, *more],
            spec={"device": "cuda", "seed": seed},
        )
        return make_record("mezo", **{**given, **changes})

    return run


def test_gpu_hours_name_model_and_count_of_the_gpus(on_gpus: Any, kit: Any) -> None:
    other = on_gpus(gone(kit, "energy_joules", "no counter"), seed=1, train=1.5)
    (row,) = rows(hours.rows(load([on_gpus(), other])))
    assert (row["hardware"].text, row["hardware"].sub) == ("GPU-hours", f"2 x {H100}")
    assert row["hours_reserved"].value == 2.0
    assert (row["hours_train"].value, row["hours_train"].quality) == (1.0, "exact")
    assert row["hours_train"].sub == "sd 0.707 h"
    assert (row["hours_busy"].value, row["hours_busy"].quality) == (0.25, "sampled")
    assert row["hours_train"].tip == "step seconds x 2"


def test_what_was_not_reached_says_so_and_is_no_zero(on_gpus: Any, kit: Any) -> None:
    reached = [kit.number("gpu_hours_to_target", "run", 0.125, source="s")]
    table = hours.rows(load([on_gpus(), on_gpus(spec={"device": "cuda", "lr": 1e-3},
                                                measurements=reached)]))  # fmt: skip
    first, second = sorted(rows(table), key=lambda row: row["hours_to_target"].text)
    assert first["hours_to_target"].value == 0.125
    cell = second["hours_to_target"]
    assert (cell.text, cell.value, cell.tip) == (units.NA, None, "not reached: the best is 0.7")
    assert "not reached: the best is 0.7" in table.reasons
    assert "not reached" in hours.rows(load([on_gpus()])).absent[0]


def test_energy_is_summed_over_the_devices_and_counter_stands_beside_polled(
    on_gpus: Any, kit: Any
) -> None:
    numbers = [kit.number("energy_joules", "run", joules, device=uuid, source="counter")
               for uuid, joules in (("GPU-a", 3000.0), ("GPU-b", 600.0))]  # fmt: skip
    numbers += [kit.number("energy_polled_joules", "run", joules, device=uuid, source="power",
                           quality="sampled")
                for uuid, joules in (("GPU-a", 3300.0), ("GPU-b", 660.0))]  # fmt: skip
    numbers += [kit.number("energy_joules", "train", 1.0, device="GPU-a", source="counter")]
    (row,) = rows(hours.rows(load([on_gpus(*numbers)])))
    counter, polled = row["energy_joules"], row["energy_polled_joules"]
    assert (counter.value, counter.text, counter.sub) == (3600.0, "3.60 kJ", "1.00 Wh")
    assert (counter.quality, polled.quality) == ("exact", "sampled")
    assert polled.value == 3960.0
    assert polled.sub.endswith("; +10.0 %")
    assert "summed over 2 devices" in counter.tip


def test_the_energy_of_a_job_is_that_of_the_devices_in_its_record(on_gpus: Any, kit: Any) -> None:
    # The run saw two GPUs and used one: the other one's joules are not in the record.
    number = kit.number("energy_joules", "run", 3000.0, device="GPU-b", source="counter")
    job = of_job(on_gpus(number), "energy_joules")
    assert job is not None
    assert (job.value, job.source, job.device) == (3000.0, "counter", "GPU-b")
    both = of_job(on_gpus(number, number.model_copy(update={"device": "GPU-a"})), "energy_joules")
    assert both is not None
    assert (both.value, both.device) == (6000.0, None)
    assert of_job(on_gpus(number), "energy_joules", "train") is None


def test_a_number_of_the_whole_job_is_not_added_to_its_parts(on_gpus: Any, kit: Any) -> None:
    parts = [("GPU-a", 1000.0), ("GPU-b", 500.0), (None, 1500.0)]
    numbers = [kit.number("energy_joules", "run", v, device=d, source="c") for d, v in parts]
    (row,) = rows(hours.rows(load([on_gpus(*numbers)])))
    assert row["energy_joules"].value == 1500.0


def test_a_device_without_energy_leaves_no_sum(on_gpus: Any, kit: Any) -> None:
    numbers = [kit.number("energy_joules", "run", 1000.0, device="GPU-a", source="c"),
               gone(kit, "energy_joules", "MIG has no energy", device="GPU-b")]  # fmt: skip
    table = hours.rows(load([on_gpus(*numbers)]))
    assert any("Energy (counter)" in text and "MIG has no energy" in text for text in table.absent)


def test_cpu_hours_name_threads_and_processor(make_record: Any, kit: Any) -> None:
    numbers = [kit.number("cpu_hours_reserved", "run", 0.1, source="wall time x 2")]
    (row,) = rows(hours.rows(load([make_record("mezo", measurements=numbers)])))
    assert row["hardware"].text == "CPU-hours"
    assert row["hardware"].sub == "2 threads of AMD EPYC 7B13 (2 cores)"
    assert row["hours_reserved"].value == 0.1


def test_a_run_that_did_not_complete_costs_no_mean(on_gpus: Any) -> None:
    table = hours.rows(load([on_gpus(), on_gpus(seed=1, train=9.0, status="failed", reason="x")]))
    (row,) = rows(table)
    assert row["hours_train"].value == 0.5


def timed(make_record: Any, kit: Any, method: str = "mezo", **seconds: float) -> Any:
    numbers = [kit.number("phase_self_seconds", phase, s, source="clock")
               for phase, s in seconds.items()]  # fmt: skip
    return make_record(method, measurements=numbers, wall_seconds=60.0)


def test_time_by_phase_adds_up_to_the_wall_time(make_record: Any, kit: Any) -> None:
    seconds = dict(run=1.0, load=10.0, train=2.0, perturb=4.0, forward=20.0, update=3.0,
                   mystery=0.5, evaluate=12.0)  # fmt: skip
    table = phase_times.rows(load([timed(make_record, kit, **seconds)]))
    (row,) = rows(table)
    names = [column.key for column in table.columns]
    assert names == ["method", "load_seconds", "train_seconds", "perturb_seconds",
                     "forward_seconds", "update_seconds", "mystery_seconds", "evaluate_seconds",
                     "run_seconds", "outside_seconds", "wall_seconds"]  # fmt: skip
    parts = [row[name].value for name in names[1:-1]]
    assert sum(parts) == pytest.approx(60.0)  # type: ignore[arg-type]
    assert row["outside_seconds"].value == pytest.approx(7.5)
    assert row["wall_seconds"].value == 60.0
    assert row["forward_seconds"].sub == "33.3 %"


def test_a_phase_that_a_method_lacks_is_missing_not_zero(make_record: Any, kit: Any) -> None:
    tables = load([timed(make_record, kit, "mezo", forward=2.0, perturb=1.0),
                   timed(make_record, kit, "ft_sgd", forward=2.0, backward=4.0)])  # fmt: skip
    by_method = {row["method"].value: row for row in rows(phase_times.rows(tables))}
    assert by_method["ft_sgd"]["perturb_seconds"].missing
    assert by_method["mezo"]["backward_seconds"].missing
    assert by_method["ft_sgd"]["backward_seconds"].value == 4.0


def gaps(kit: Any, p50: float, p99: float, longest: float, **changes: Any) -> list[Any]:
    given = {"source": "nvml", **changes}
    return [
        kit.number(f"sampling_gap_{name}_seconds", "run", value, **given)
        for name, value in zip(("p50", "p99", "max"), (p50, p99, longest), strict=True)
    ]


def test_sampling_is_told_as_asked_and_as_achieved(
    make_record: Any, kit: Any, tmp_path: Path
) -> None:
    records = [
        make_record("mezo", spec={"seed": seed}, measurements=gaps(kit, *achieved))
        for seed, achieved in enumerate([(0.05, 0.06, 0.2), (0.052, 0.09, 1.5), (0.07, 0.08, 0.1)])
    ]
    kit.write(tmp_path, records)
    folders = sorted(path.parent for path in tmp_path.rglob("record.json"))
    for folder in folders:
        kit.write_trace(folder, [(0.0, "host", "", "rss_bytes", 1.0)], [])
    (row,) = rows(sampling.rows(load(records, folders=folders)))
    assert row["source"].value == "nvml"
    assert (row["asked_seconds"].value, row["runs"].value) == (0.05, 3)
    told = [row[f"gap_{name}_seconds"].value for name in ("p50", "p99", "max")]
    assert told == [0.052, 0.09, 1.5]
    assert row["worst"].value == records[1].key
    assert "How it was measured: sampling" in build(tmp_path, tmp_path / "out").read_text()


def test_sampling_without_the_samplers_own_file_is_still_told(make_record: Any, kit: Any) -> None:
    table = sampling.rows(load([make_record("mezo", measurements=gaps(kit, 0.05, 0.06, 0.07))]))
    (row,) = rows(table)
    assert row["gap_max_seconds"].value == 0.07
    assert any("sampler.json" in text for text in table.absent)


def test_sources_and_intervals_are_told_apart(make_record: Any, kit: Any, tmp_path: Path) -> None:
    numbers = [*gaps(kit, 0.05, 0.06, 0.07), *gaps(kit, 0.1, 0.2, 0.3, source="host")]
    records = [make_record("mezo", measurements=numbers),
               make_record("ft_sgd", measurements=gaps(kit, 0.005, 0.006, 0.007))]  # fmt: skip
    kit.write(tmp_path, records)
    folders = sorted(path.parent for path in tmp_path.rglob("record.json"))
    for folder, interval in zip(folders, (0.05, 0.005), strict=True):
        kit.write_trace(folder, [], [], interval=interval)
    told = [(row["source"].value, row["asked_seconds"].value, row["gap_max_seconds"].value)
            for row in rows(sampling.rows(load(records, folders=folders)))]  # fmt: skip
    assert told == [("host", 0.05, 0.3), ("nvml", 0.005, 0.007), ("nvml", 0.05, 0.07)]


def test_older_records_have_none_of_these_tables(kit: Any) -> None:
    tables = load([*kit.accuracy_records(), *kit.memory_records(), *kit.wall_records()])
    for file in (hours, phase_times, sampling):
        assert file.rows(tables).rows == ()


@pytest.mark.parametrize(
    ("joules", "told"),
    [(0.5, ("0.500 J", "0.000139 Wh")), (999.96, ("1.00 kJ", "0.278 Wh")),
     (3.6e6, ("3.60 MJ", "1.00 kWh"))],
)  # fmt: skip
def test_energies_are_written_in_the_unit_that_suits_them(
    joules: float, told: tuple[str, str]
) -> None:
    assert (units.joules(joules), units.watt_hours(joules)) == told


def test_a_processor_without_a_counter_alone_makes_no_table(make_record: Any, kit: Any) -> None:
    numbers = [gone(kit, "host_energy_joules", "no RAPL package")]
    assert hours.rows(load([make_record("mezo", measurements=numbers)])).rows == ()
