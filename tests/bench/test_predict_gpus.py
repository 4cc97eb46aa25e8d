"""The catalogue of GPUs: complete, dense, with sources, and forgiving about spelling."""

from __future__ import annotations

import pytest

from bench.predict.gpus import GIB, catalogue, find
from bench.records import UserError

PRINTED = {
    "a100-40gb": 40,
    "a100-80gb": 80,
    "h100-80gb": 80,
    "h100-pcie": 80,
    "h200": 141,
    "b200": 192,
    "l4": 24,
    "l40s": 48,
    "a10g": 24,
    "v100-16gb": 16,
    "v100-32gb": 32,
    "t4": 16,
    "rtx-3090": 24,
    "rtx-4090": 24,
    "rtx-5090": 32,
    "mi300x": 192,
}
"""GB on the box."""


def test_every_gpu_of_the_plan_is_there_and_holds_less_than_its_box_says():
    known = catalogue()
    assert set(known) == set(PRINTED)
    for name, size in PRINTED.items():
        assert 0.9 * size < known[name].usable / GIB < size, name


def test_throughput_is_dense_and_not_the_printed_figure_with_sparsity():
    assert find("a100").flops("bfloat16") == 312e12
    assert find("h100").flops("float16") == pytest.approx(989.4e12)
    assert find("l4").flops("bfloat16") == 121e12
    for gpu in catalogue().values():
        rates = [gpu.flops(dtype) for dtype in ("float32", "float16")]
        assert rates == sorted(rates)
        assert 5 < gpu.flops("float16") / gpu.bandwidth < 700, gpu.name  # flops a byte


def test_what_a_gpu_has_no_units_for_runs_as_float32():
    old = find("v100")
    assert old.flops("bfloat16") == old.flops("float32") == 15.7e12


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("A100-80GB", "a100-80gb"),
        ("NVIDIA H100 80GB", "h100-80gb"),
        ("h100_pcie", "h100-pcie"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("v100 16 gb", "v100-16gb"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_gpu_is_found_however_it_is_spelt(spelt, name):
    assert find(spelt).name == name


def test_an_unknown_gpu_is_answered_with_the_nearest_name():
    with pytest.raises(
        UserError, match=r"^Unknown GPU 'a100-60gb'\. Did you mean 'a100-[48]0gb'\?"
    ):
        find("a100-60gb")
    with pytest.raises(UserError, match="There are: a100-40gb"):
        find("voodoo")


def test_every_figure_has_a_source_and_no_price_is_packaged():
    for gpu in catalogue().values():
        assert len(gpu.source) > 10 and len(gpu.source_usable) > 5, gpu.name
        assert gpu.price_per_hour is None and gpu.link and gpu.link_bandwidth > 0


def test_a_user_s_file_adds_prices_and_cards(tmp_path):
    path = tmp_path / "gpus.toml"
    path.write_text(
        "[h100-80gb]\nprice_per_hour = 2.5\n\n[mine]\ntitle = 'Mine'\narchitecture = 'ada'\n"
        "usable_gib = 12.5\ntflops = { float32 = 10.0 }\nbandwidth_gbs = 500\n"
    )
    assert find("h100", path).price_per_hour == 2.5
    assert find("h100", path).usable == find("h100").usable
    assert find("mine", path).usable == int(12.5 * GIB)
    assert find("mine", path).bandwidth == 5e11


def test_a_user_s_card_without_a_figure_is_an_error_in_one_line(tmp_path):
    path = tmp_path / "gpus.toml"
    path.write_text("[mine]\ntitle = 'Mine'\n")
    with pytest.raises(UserError, match=r"^GPU 'mine': expected title, .* 'architecture'"):
        find("mine", path)
    path.write_text("[mine\n")
    with pytest.raises(UserError, match="in TOML"):
        find("mine", path)
