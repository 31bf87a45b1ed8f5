"""recipes/train_dlrm_compositional.py, and --tables.* of the other training recipes."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from tests.recipe import ROOT, records, run_recipe

SMALL = ["demo", "--rows=40960", "--batch-size=1024", "--eval-every=0", "--log.every=5"]


def losses(folder: Path, recipe: str, world_size: int, *options: str) -> list[float]:
    run_recipe(recipe, [*SMALL, *options, f"--run-dir={folder}"], world_size)
    return [record["train/loss"] for record in records(folder / "demo") if "train/loss" in record]


def test_it_is_a_small_diff_of_the_baseline() -> None:
    baseline, ours = (
        (ROOT / "recipes" / f"{name}.py").read_text() for name in ("train_dlrm", "train_dlrm_compositional")
    )
    before, after = (text.split('"""', 2)[2].splitlines() for text in (baseline, ours))
    changed = [line for line in difflib.unified_diff(before, after, n=0, lineterm="") if line.startswith(("+", "-"))]
    assert len([line for line in changed if line.startswith("+")]) <= 6


@pytest.mark.slow
def test_config_alone_makes_the_tables_of_the_baseline_compositional(tmp_path: Path) -> None:
    options = ["--tables.kind=quotient_remainder", "--tables.threshold=900"]
    ours = losses(tmp_path / "ours", "train_dlrm_compositional", 1)
    assert ours == losses(tmp_path / "baseline", "train_dlrm", 1, *options)
    assert ours != losses(tmp_path / "plain", "train_dlrm", 1)


KINDS = {
    "mult, column-wise": ["--sharding.kind=column_wise", "--sparse.kind=sgd", "--sparse.lr=0.5"],
    "add, row-wise": ["--tables.operation=add", "--sharding.kind=row_wise"],
    "concat, table-wise": ["--tables.operation=concat", "--sharding.kind=table_wise"],
    "feature generation": ["--tables.operation=feature_generation", "--sharding.kind=row_wise"],
    "path": ["--tables.operation=path", "--tables.hidden=16"],
    "three partitions": ["--tables.kind=mixed_radix", "--tables.partitions=3"],
    "mixed dims": ["--tables.kind=mixed_dimension"],
}
MORE = ("feature generation", "concat, table-wise", "three partitions")  # make test-slow


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[pytest.mark.slow] if name in MORE else [])
        for name, options in KINDS.items()
    ],
)
def test_same_losses_on_one_and_two_ranks(tmp_path: Path, options: list[str]) -> None:
    one, two = (losses(tmp_path / str(ranks), "train_dlrm_compositional", ranks, *options) for ranks in (1, 2))
    assert two == pytest.approx(one, rel=2e-5)
    assert one[-1] < one[0]


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("train_dlrm", ["--sharding.kind=row_wise"]),
        pytest.param("train_dlrm_compositional", ["--sharding.kind=table_wise"], marks=pytest.mark.slow),
    ],
)
def test_half_precision_tables_train_nearly_alike(tmp_path: Path, recipe: str, options: list[str]) -> None:
    whole, half = (
        losses(tmp_path / data_type, recipe, 2, *options, f"--tables.data-type={data_type}")
        for data_type in ("fp32", "fp16")
    )
    assert half == pytest.approx(whole, rel=2e-3)
    assert half != whole
    (saved,) = (tmp_path / "fp16/demo/checkpoints").glob("*")
    (other,) = (tmp_path / "fp32/demo/checkpoints").glob("*")
    sizes = [sum(file.stat().st_size for file in folder.glob("*.distcp")) for folder in (saved, other)]
    assert sizes[0] < 0.8 * sizes[1]


def test_dcnv2_takes_the_same_options(tmp_path: Path) -> None:
    options = ["--tables.kind=quotient_remainder", "--tables.operation=feature_generation"]
    found = losses(tmp_path / "ours", "train_dcnv2", 2, *options)
    assert found[-1] < found[0]


def test_a_run_resumes_on_other_ranks_and_refuses_the_checkpoint_of_other_tables(tmp_path: Path) -> None:
    constant = ["--log.every=1", "--schedule.decay-steps=0", "--schedule.warmup-steps=0", "--sparse.kind=adagrad"]
    whole = losses(tmp_path / "whole", "train_dlrm_compositional", 1, *constant)
    losses(tmp_path / "parts", "train_dlrm_compositional", 2, *constant, "--rows=20480", "--sharding.kind=column_wise")
    parts = losses(tmp_path / "parts", "train_dlrm_compositional", 1, *constant)
    assert len(whole) == 40
    assert parts == pytest.approx(whole, rel=2e-5)
    with pytest.raises(RuntimeError, match=r"tables.*collisions.*5"):
        losses(tmp_path / "parts", "train_dlrm_compositional", 1, *constant, "--tables.collisions=5")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quotient_remainder_ends_nearer_to_the_teacher_than_hashing_of_the_same_size(tmp_path: Path) -> None:
    way = {}
    for kind in ("quotient_remainder", "hash"):
        options = ["demo", f"--tables.kind={kind}", f"--run-dir={tmp_path}/{kind}"]
        metrics = run_recipe("train_dlrm_compositional", options, 2, timeout_s=400)
        way[kind] = (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5)
    assert way["quotient_remainder"] >= 0.975
    assert way["quotient_remainder"] - way["hash"] >= 0.01
