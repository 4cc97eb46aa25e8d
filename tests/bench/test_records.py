"""Records: what is refused, what survives a round trip, and the page that documents them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from bench.records import (
    METRICS,
    Measurement,
    RunRecord,
    RunSpec,
    UserError,
    document,
    read_record,
    read_results,
    write_record,
)
from bench.records.record import SCHEMA_VERSION

SPEC = RunSpec(method="mezo", model="opt-tiny", task="marker", steps=3)


def record(**changes) -> RunRecord:
    fields = {
        "key": SPEC.key,
        "suite": "s",
        "group_title": "g",
        "spec": SPEC,
        "status": "completed",
        "reason": "done",
        "started_at": "2026-01-01T00:00:00+00:00",
        "wall_seconds": 1.0,
    }
    return RunRecord(**{**fields, **changes})


def measurement(**changes) -> dict:
    fields = {
        "metric": "host_peak_bytes",
        "phase": "run",
        "value": 5,
        "unit": "B",
        "quality": "exact",
        "source": "VmHWM",
    }
    return {**fields, **changes}


def test_a_record_survives_the_disk(tmp_path):
    wanted = record(measurements=[Measurement(**measurement())], definitions=METRICS)
    assert read_record(write_record(tmp_path / "a", wanted)) == wanted
    assert read_results(tmp_path) == [wanted]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    "changes",
    [
        {"value": None},
        {"quality": "unavailable"},
        {"value": None, "quality": "unavailable", "reason": None},
    ],
)
def test_a_missing_number_has_a_reason(changes):
    with pytest.raises(ValidationError):
        Measurement(**measurement(**changes))


@pytest.mark.parametrize("changes", [{"metric": "peak"}, {"unit": "GiB"}])
def test_a_number_without_definition_or_of_another_unit_is_refused(changes):
    with pytest.raises(ValidationError, match=r"has no definition|is in B"):
        record(measurements=[Measurement(**measurement(**changes))], definitions=METRICS)


def test_the_key_stands_for_every_field_but_not_for_defaults():
    assert SPEC.key == RunSpec(**SPEC.model_dump()).key
    changed = [{"steps": 4}, {"seed": 1}, {"options": {"eps": 0.1}}, {"target_accuracy": 0.7}]
    keys = {SPEC.model_copy(update=c).key for c in changed}
    assert len(keys | {SPEC.key}) == 5
    assert SPEC.digest() == "84d899dc", "a field that was added later renames no finished run"
    one, other = ({"options": {"eps": v}} for v in (1, 1.0))
    assert SPEC.model_copy(update=one).key == SPEC.model_copy(update=other).key
    assert SPEC.key == "main--mezo--opt-tiny--marker--float32--b8-s64--seed0--" + SPEC.digest()


@pytest.mark.parametrize(
    "model", ["/tmp/some/dir with space/", "Org/Model_v2", "x" * 300, "../.."]
)
def test_keys_are_file_names(model):
    key = SPEC.model_copy(update={"model": model}).key
    assert "/" not in key and " " not in key and len(key) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 1', "not a whole JSON file"),
        ("[]", "no zometer record"),
        ("{}", "no zometer record"),
        ('{"schema_version": 1}', "no valid record: key"),
        (json.dumps({"schema_version": SCHEMA_VERSION + 1}), "Upgrade zometer"),
    ],
)
def test_a_damaged_or_newer_record_is_one_clear_line(tmp_path, text, message):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_results(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="No results folder"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no finished run"):
        read_results(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_record(tmp_path, record())
    before = path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left") as caught:
        write_record(tmp_path, record(reason="other"))
    assert caught.value.exit_code == 3
    assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_every_field_is_documented_and_the_page_is_current():
    for model in document._MODELS:
        missing = [n for n, f in model.model_fields.items() if not f.description]
        assert not missing, f"{model.__name__}: {missing}"
    page = Path(__file__).parents[2] / "docs" / "records.md"
    assert page.read_text() == document.page(), "run: python -m bench.records.document"
