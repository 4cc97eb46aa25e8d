"""Suites: what they expand to, and how each mistake in one is answered."""

from __future__ import annotations

import pytest

from bench import suite
from bench.records import UserError


def methods_of(loaded):
    return [c.spec.method for c in loaded.cells]


@pytest.mark.parametrize("name", suite.names())
def test_built_in_suites_expand(name):
    loaded = suite.load(name)
    assert loaded.cells and loaded.title


def test_axes_are_multiplied_and_keys_are_readable(tiny_suite):
    loaded = suite.load(str(tiny_suite("seed = [0, 1]\n")))
    assert methods_of(loaded) == ["mezo", "mezo", "ft_sgd", "ft_sgd"]
    keys = [c.spec.key for c in loaded.cells]
    assert len(set(keys)) == 4
    assert keys[1].startswith("main--mezo--opt-tiny--marker--float32--b4-s16--seed1--")


def test_memory_and_time_as_an_axis_are_two_runs(tiny_suite):
    loaded = suite.load(str(tiny_suite('measure = ["memory", "time"]\n')))
    assert [c.spec.measure for c in loaded.cells] == ["memory", "time"] * 2
    assert len({c.spec.key for c in loaded.cells}) == 4


def test_exclude_then_include(tiny_suite):
    path = tiny_suite(
        """
[[exclude]]
method = "ft_sgd"
[[include]]
method = "mezo"
options.eps = 0.5
[[include]]
method = "ft_adamw"
steps = 9
"""
    )
    cells = suite.load(str(path)).cells
    assert [(c.spec.method, c.spec.steps) for c in cells] == [("mezo", 3), ("ft_adamw", 9)]
    assert cells[0].spec.options == {"eps": 0.5}


def test_groups_share_the_files_fixed_part(tiny_suite):
    path = tiny_suite(
        body="""
[run]
model = "opt-tiny"
task = "marker"
steps = 1
lr = 0.1
[[group]]
name = "a"
title = "First"
run.method = "mezo"
[[group]]
name = "b"
run.method = "ft_sgd"
run.steps = 2
"""
    )
    cells = suite.load(str(path)).cells
    assert [(c.spec.group, c.group_title, c.spec.steps) for c in cells] == [
        ("a", "First", 1),
        ("b", "b", 2),
    ]


def test_one_setting_of_a_tuning_may_be_an_axis(tiny_suite):
    path = tiny_suite('tuning = ["lora"]\n"tuning_options.r" = [2, 4]\n')
    cells = suite.load(str(path)).cells
    assert [c.spec.tuning_options for c in cells] == [{"r": 2}, {"r": 4}] * 2


def test_sizes_may_be_written_with_units(tiny_suite):
    path = tiny_suite('memory_limit_bytes = ["1.5 GiB"]\n')
    assert suite.load(str(path)).cells[0].spec.memory_limit_bytes == 3 * 2**29


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size", "batchsize", "Unknown key 'batchsize'. Did you mean 'batch_size'"),
        ('"mezo"', '"mezzo"', "Unknown method 'mezzo'. Did you mean 'mezo'"),
        ('"opt-tiny"', '"opt-tinny"', "Did you mean 'opt-tiny'"),
        ('"marker"', '"markr"', "Did you mean 'marker'"),
        ("batch_size = 4", "batch_size = 0", "'batch_size': Input should be greater"),
        ("steps = 3\n", "", "'steps' is missing"),
        ("lr = 1e-3", "lr = 1e-3\noptions.epss = 1.0", "Unknown option of method"),
        ("lr = 1e-3", 'device = "tpu"', "'device'"),
        ("[axes]", "[axis]", "Unknown key 'axis'. Did you mean 'axes'"),
        ('["mezo", "ft_sgd"]', '"mezo"', "axis 'method' must be a list"),
        ("title", "title =", "is not TOML"),
        ("lr = 1e-3", "", "'lr' is missing"),
        ("lr = 1e-3", "lr = inf", "'lr'"),
        ("lr = 1e-3", "lr = 1e-3\noptions.eps = nan", "'options.eps"),
        ("lr = 1e-3", 'lr = 1e-3\nprompt = "it_wass"', "Unknown prompt 'it_wass'"),
        ("lr = 1e-3", 'lr = 1e-3\ngroup = "a"', "'group' is no key of a run"),
        ("lr = 1e-3", 'lr = 1e-3\ntuning = "lorra"', "Did you mean 'lora'"),
        ("lr = 1e-3", 'lr = 1e-3\ntuning = "lora"\ntuning_options.rr = 2', "'rr'"),
        ("lr = 1e-3", "lr = 1e-3\ntuning_options.r = inf", "'tuning_options.r'"),
        ("lr = 1e-3", "lr = 1e-3\ncheckpointing = true", "there is no backward pass"),
        ("lr = 1e-3", 'lr = 1e-3\nmeasure = "both"', "Make two runs: measure = "),
        ("lr = 1e-3", 'lr = 1e-3\nmeasure = ["memory", "time"]', "among the group's axes"),
        (
            "lr = 1e-3",
            "lr = 1e-3\ntarget_accuracy = 75",
            "'target_accuracy': Input should be less",
        ),
        ("lr = 1e-3", 'lr = 1e-3\nscore = "accuracy"', "has no gradient"),
        ("lr = 1e-3", 'lr = 1e-3\nlr_schedule = "linaer"', "'lr_schedule'"),
        ("[axes]", "run2 = 3\n[axes]", "Unknown key 'run2'"),
        ("[axes]", "[include]", "'include' must be tables"),
        ("[axes]\n", "[group]\n", "'group' must be tables"),
        ("[axes]\n", '[[group]]\nname = "a"\n[axes]\n', "axes go inside a"),
    ],
)
def test_a_mistake_is_one_clear_line(tiny_suite, old, new, message):
    path = tiny_suite()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message.replace(".", r"\.").replace("(", r"\(")) as caught:
        suite.load(str(path))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_exclude_of_what_is_not_there(tiny_suite):
    with pytest.raises(UserError, match="matches no combination"):
        suite.load(str(tiny_suite('[[exclude]]\nmethod = "mezzo"\n')))


def test_exclude_of_what_is_no_axis(tiny_suite):
    with pytest.raises(UserError, match="exclude names 'steps'"):
        suite.load(str(tiny_suite("[[exclude]]\nsteps = 3\n")))


@pytest.mark.parametrize(
    ("name", "message"), [("quickstrt", "Did you mean 'quickstart'"), ("no.toml", "No suite file")]
)
def test_an_unknown_suite(name, message):
    with pytest.raises(UserError, match=message):
        suite.load(name)
