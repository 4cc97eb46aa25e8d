"""docs/measuring.md: its tables are those of the code, and every metric and flag is in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import trackers
from bench.checkup import document
from bench.checkup.flags import FLAGS
from bench.devices.answer import SEVERITIES
from bench.records import METRICS
from bench.trackers import host_tensors

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "measuring.md"
RAISED = re.compile(r'(?:doubt\(|Flag\(name=|flag=|_FLAGS\b.*?)\s*"([a-z_]+)"')


def test_the_page_is_what_the_code_says():
    text = PAGE.read_text(encoding="utf-8")
    assert document.page(text) == text, "run: python -m bench.checkup.document"


def test_every_metric_has_a_source_a_quality_and_its_bias():
    ours = METRICS.keys() | host_tensors.METRICS.keys()
    assert document.FACTS.keys() == ours
    assert ours <= trackers.definitions().keys()
    assert all(source and exact for source, exact, _ in document.FACTS.values())


def test_every_flag_that_the_code_raises_is_explained():
    files = [p for p in (ROOT / "bench").rglob("*.py") if "cli" not in p.parts]
    raised = {n for p in files for n in RAISED.findall(p.read_text(encoding="utf-8"))}
    assert {"gpu_lost", "oom_retry", "sampler_died", "resumed"} <= raised
    assert (raised | SEVERITIES.keys()) <= FLAGS.keys()


def test_a_flag_weighs_what_the_code_says(monkeypatch):
    assert document.severity("oom_retry") == "invalid"
    assert {FLAGS[name][0] for name in SEVERITIES if FLAGS[name][0] != SEVERITIES[name]} == set()
    monkeypatch.setitem(document.SEVERITIES, "throttled", "invalid")
    assert "| invalid | `throttled` |" in document.flags()


def test_a_page_without_its_marks_is_refused():
    with pytest.raises(ValueError, match="has no line"):
        document.page("# Measuring\n")


def test_the_commands_of_the_page_exist():
    from bench.cli import app

    known = {c.name for c in app.registered_commands} | {g.name for g in app.registered_groups}
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"zometer ([a-z]+)", text))
    assert named <= known and {"doctor", "run", "bench"} <= named
    assert (ROOT / "suites" / "selfcheck.toml").exists()
