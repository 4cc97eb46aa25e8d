"""``zometer predict``, ``fit`` and ``capacity`` as a user meets them; one trace is real."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bench import suite
from bench.cli import app
from bench.cli.asked import options_of, spec_of
from bench.predict import cache, measured
from bench.predict.predict import Job, _outcome, essence, predict, predict_all, request_of
from bench.predict.prediction import Prediction
from bench.records import Measurement, RunRecord, RunSpec, UserError, read_record

TINY = RunSpec(
    method="mezo", model="opt-tiny", task="random_tokens", steps=2, lr=1e-6, batch_size=2,
    seq_len=16, dtype="float16", device="cuda",
)  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of this module's own."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))


@pytest.fixture(scope="module")
def tiny(kept: Path) -> Prediction:
    """A prediction that was really traced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(kept))
        return predict(TINY, full=True)


def zometer(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_prediction_holds_the_weights_and_says_which_model(tiny: Prediction) -> None:
    needs = tiny.needs[0]
    assert needs.components["weights"] == tiny.model.parameter_bytes == 2 * tiny.model.parameters
    assert needs.traced <= needs.allocated <= needs.reserved <= needs.process.low
    assert tiny.whole and tiny.steps == 2


def test_a_gpu_of_another_architecture_has_another_workspace(tiny: Prediction) -> None:
    default, hopper = tiny.figures["default"][0], tiny.figures["hopper"][0]
    assert hopper.allocated - default.allocated == hopper.workspace - default.workspace > 0


def test_what_is_kept_is_not_traced_again(
    tiny: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.predict.pool._Process", None)
    again = predict(TINY.model_copy(update={"measure": "memory", "seed": 3}), full=True)
    assert again.needs == tiny.needs and again.spec.seed == 3


def test_a_broken_file_in_the_cache_is_no_prediction(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"spec": 1')
    assert cache.read(path) is None


def test_a_cache_that_can_not_be_written_keeps_nothing_and_stops_nobody(
    tiny: Prediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise UserError("Can't write: No space left on device.", 3)

    monkeypatch.setattr(cache, "write_atomically", full)
    cache.write(tmp_path / "x.json", tiny)
    assert cache.read(tmp_path / "x.json") is None


def _local(folder: Path, **changes: object) -> str:
    config: dict[str, object] = {
        "model_type": "opt", "architectures": ["OPTForCausalLM"], "hidden_size": 64,
        "word_embed_proj_dim": 64, "ffn_dim": 128, "num_attention_heads": 4,
        "num_hidden_layers": 2, "vocab_size": 512, "max_position_embeddings": 64,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | changes))
    return str(folder)


def test_a_changed_directory_is_another_prediction(tmp_path: Path) -> None:
    def key() -> str:
        return cache.key_of(request_of(TINY.model_copy(update={"model": name}), "cuda"), "")

    name = _local(tmp_path / "mine")
    before = key()
    assert key() == before
    _local(tmp_path / "mine", num_hidden_layers=3)
    assert key() != before


@pytest.mark.parametrize(("task", "kept"), [("random_tokens", True), ("sst2", False)])
def test_what_hangs_on_data_is_not_kept(task: str, kept: bool) -> None:
    assert cache.keeps(request_of(TINY.model_copy(update={"task": task}), "cuda")) is kept


def test_a_key_changes_with_every_library_that_decides_a_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def key() -> str:
        return cache.key_of(request_of(TINY, "cuda"), "")

    before = key()
    for library in ("torch", "transformers", "peft", "numba", "tokenizers", "datasets"):
        told = {library: "other"}
        monkeypatch.setattr(cache, "version", lambda name, told=told: told.get(name, "1"))
        one = key()
        monkeypatch.setattr(cache, "version", lambda name: "1")
        assert one not in (before, key()), library


@pytest.mark.parametrize("device", ["mps", "xpu", "xpu:1"])
def test_an_accelerator_that_is_not_cuda_is_not_predicted_as_one(device: str) -> None:
    (found,) = predict_all([TINY.model_copy(update={"device": device})], emulate=None)
    assert isinstance(found, UserError)
    assert str(found).startswith(f"Expected device cpu or cuda, got '{device}'")


def test_a_cell_that_can_not_be_asked_for_does_not_end_the_others(tiny: Prediction) -> None:
    first, second = predict_all([TINY.model_copy(update={"model": "./nowhere"}), TINY], full=True)
    assert isinstance(first, UserError) and "No model directory './nowhere'" in str(first)
    assert isinstance(second, Prediction)


def test_any_exception_of_a_cell_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(job: object) -> Prediction:
        raise KeyError("first line\nsecond")

    monkeypatch.setattr("bench.predict.predict._predicted", failing)
    found = _outcome(Job(request_of(TINY, "cuda"), full=True))
    assert isinstance(found, UserError) and found.exit_code == 3
    assert "'mezo' on 'opt-tiny' can't be traced: KeyError: " in str(found)
    assert "\n" not in str(found)


def test_what_memory_hangs_on_stays_in_the_essence_of_a_run() -> None:
    longer = TINY.model_copy(update={"seq_len": 17})
    assert essence(longer) != essence(TINY)
    assert essence(TINY.model_copy(update={"steps": 900, "lr": 0.1})) == essence(TINY)
    real = TINY.model_copy(update={"task": "mr"})  # which examples come hangs on the seed
    assert essence(real.model_copy(update={"seed": 4})) != essence(real)


def test_errors_stand_among_predictions(tiny: Prediction) -> None:
    wrong = TINY.model_copy(update={"method": "ft_adamw_8bit"})
    first, second = predict_all([wrong, TINY], full=True)
    assert isinstance(first, UserError) and "can't be traced" in str(first)
    assert isinstance(second, Prediction)


def test_fit_answers_in_words_first(tiny: Prediction) -> None:
    done = zometer(
        "fit", "--model", "opt-tiny", "--method", "mezo", "--dtype", "fp16", "--batch", 2,
        "--seq", 16, "--device", "h100",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    first = done.output.splitlines()[0]
    assert "mezo on opt-tiny in float16" in first and "fits one H100-80GB with" in first
    assert "max_memory_reserved" in done.output


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--device": "h1000"}, "Unknown GPU 'h1000'. Did you mean 'h100-80gb'?"),
        ({"--model": "opt-66"}, "Unknown model 'opt-66'. Did you mean 'opt-66b'?"),
        ({"--method": "mezzo"}, "Unknown method 'mezzo'. Did you mean 'mezo'?"),
        ({"--dtype": "fp8"}, "Unknown dtype 'fp8'."),
        ({"--option": "eps"}, "Expected --option name=value, got 'eps'."),
        ({"--tuning": "lorra"}, "Unknown tuning 'lorra'. Did you mean 'lora'?"),
    ],
)
def test_what_fit_does_not_know_is_one_clear_line(changes: dict[str, str], says: str) -> None:
    given = {"--model": "opt-tiny", "--method": "mezo", **changes}
    done = zometer("fit", *(word for pair in given.items() for word in pair))
    assert isinstance(done.exception, UserError)
    assert str(done.exception).startswith(says)


def test_a_sequence_beyond_the_context_is_refused(kept: Path) -> None:
    done = zometer("fit", "--model", "opt-tiny", "--method", "mezo", "--seq", 100_000)
    assert isinstance(done.exception, UserError)
    assert "\n" not in str(done.exception) and "100000" in str(done.exception)


def test_a_directory_without_a_slash_is_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _local(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    asked = dict(model="mine", method="mezo", dtype="bf16", options={})
    assert spec_of(**asked, batch_size=1, seq_len=8, tuning="full").model == "mine"


def test_options_of_the_command_line_get_their_types() -> None:
    found = options_of(["eps=1e-3", "period=2", "storage=dense", "scale_lr=true"])
    assert found == {"eps": 0.001, "period": 2, "storage": "dense", "scale_lr": True}
    asked = dict(model="opt-tiny", method="mezo_svrg", dtype="bf16", options=found | {})
    with pytest.raises(UserError, match="scale_lr"):
        spec_of(**asked, batch_size=1, seq_len=8, tuning="full")


def test_capacity_names_a_gpu_and_hours(tiny: Prediction) -> None:
    done = zometer(
        "capacity", "--models", "opt-tiny", "--methods", "mezo", "--dtype", "fp16", "--batch", 2,
        "--seq", 16, "--devices", "t4,h100", "--full", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (line,) = map(json.loads, done.output.splitlines())
    assert line["plan"]["gpu"] == "t4" and line["plan"]["count"] == 1
    assert (
        0 < line["plan"]["cost"]["gpu_hours"]["low"] <= line["plan"]["cost"]["gpu_hours"]["high"]
    )


@pytest.fixture
def predicted(tiny: Prediction, cuda_suite: Path, tmp_path: Path) -> tuple[Path, RunRecord]:
    """A suite's folder after ``zometer predict``, and its one record."""
    done = zometer("predict", cuda_suite, "--out", tmp_path / "results", "--full")
    assert done.exit_code == 0, done.output
    (cell,) = suite.load(str(cuda_suite)).cells
    folder = cell.folder(tmp_path / "results")
    return folder, read_record(folder / measured.PREDICTION)


def test_a_predicted_run_is_a_record_that_was_skipped(
    predicted: tuple[Path, RunRecord], tiny: Prediction
) -> None:
    record = predicted[1]
    assert (record.status, record.reason) == ("skipped", "predicted, not run")
    assert not record.measurements and {m.quality for m in record.predicted} == {"predicted"}
    found = {(m.metric, m.phase): m.value for m in record.predicted}
    needs = tiny.needs[0]
    assert found["device_allocated_peak_bytes", "run"] == needs.allocated
    assert found["device_reserved_peak_bytes", "run"] == needs.reserved
    assert found["predicted_process_high_bytes", "run"] == needs.process.high
    inner = [p.allocated for p in needs.phases if p.phase not in ("run", "load", "evaluate")]
    assert found["device_allocated_peak_bytes", "train"] == max(inner)
    forward = next(p.allocated for p in needs.phases if p.phase == "forward")
    assert found["device_allocated_peak_bytes", "forward"] == forward


def _run_of(record: RunRecord, allocated: int) -> RunRecord:
    metric = "device_allocated_peak_bytes"
    number = Measurement(
        metric=metric, phase="run", value=allocated, unit="B", quality="exact", source="torch"
    )
    known = {metric: measured.definitions()[metric]}
    changes = {"status": "completed", "measurements": [number], "definitions": known}
    return record.model_copy(update={**changes, "predicted": []})


def test_a_run_takes_its_prediction_over_with_the_error(
    predicted: tuple[Path, RunRecord], tiny: Prediction
) -> None:
    folder, guess = predicted
    joined = measured.joined(folder, _run_of(guess, tiny.needs[0].allocated + 512))
    errors = [m for m in joined.predicted if m.metric.startswith("predicted_minus")]
    assert [(m.value, m.phase) for m in errors] == [(-512, "run")]
    RunRecord.model_validate(joined.model_dump())  # every metric is defined


def test_the_prediction_of_another_run_is_left_alone(
    predicted: tuple[Path, RunRecord], tmp_path: Path
) -> None:
    folder, guess = predicted
    other = _run_of(guess, 1).model_copy(update={"key": "other"})
    assert measured.joined(folder, other).predicted == []
    assert measured.joined(tmp_path, _run_of(guess, 1)).predicted == []


def test_a_prediction_of_real_text_says_which_minibatches_it_is_of(
    predicted: tuple[Path, RunRecord], tiny: Prediction
) -> None:
    _, guess = predicted
    assert not any("minibatches" in m.source for m in guess.predicted)
    text = replace(tiny, spec=tiny.spec.model_copy(update={"task": "sst2"}))
    assert all("minibatches 0 and 1" in m.source for m in measured._measurements(text))


def test_predict_without_a_suite_says_what_to_name() -> None:
    done = zometer("predict")
    assert isinstance(done.exception, UserError) and "Name a suite" in str(done.exception)
