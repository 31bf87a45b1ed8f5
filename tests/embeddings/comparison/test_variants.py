"""Variants, their sizes, finished runs, and the report about them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from dlrm_torchrec.embeddings.comparison.report import plot, to_markdown, write_report
from dlrm_torchrec.embeddings.comparison.sweep import Sweep
from dlrm_torchrec.embeddings.comparison.variants import Runs, Variant, variants
from dlrm_torchrec.embeddings.config import TablesConfig, TablesKind
from dlrm_torchrec.schema import Table

TABLES = [
    Table(name="a", rows=10, dim=8, features=("a",)),
    Table(name="b", rows=1000, dim=8, features=("b",)),
]
WAYS = {
    "plain": TablesConfig(),
    "hash": TablesConfig(kind="hash"),
    "qr": TablesConfig(kind="quotient_remainder"),
    "mixed": TablesConfig(kind="mixed_dimension"),
}
SWEEP = Sweep(collisions=(0, 5), threshold=1, thresholds=(20,), alphas=(0.0, 0.3))


def test_variants_are_all_ways_at_all_their_sizes() -> None:
    found = {variant.name: variant.parameters for variant in variants(SWEEP, WAYS, TABLES)}
    assert found == {
        "plain": 8 * 1010,
        "hash-5-collisions-threshold-1": 8 * (2 + 200),
        "hash-4-collisions-threshold-20": 8 * (10 + 250),
        "qr-0-collisions-threshold-1": 8 * (4 + 3 + 32 + 32),  # 4 x 3 >= 10, 32 x 32 >= 1000
        "qr-5-collisions-threshold-1": 8 * (2 + 5 + 200 + 5),
        "qr-4-collisions-threshold-20": 8 * (10 + 250 + 4),
        "mixed-alpha-0.0": 8 * 1010,
        "mixed-alpha-0.3": 8 * 10 + 4 * 1000 + 4 * 8,
    }
    assert all(variant.bytes == 4 * variant.parameters for variant in variants(SWEEP, WAYS, TABLES))


def test_chosen_ways_alone() -> None:
    assert [v.way for v in variants(Sweep(ways=("qr", "plain")), WAYS, TABLES)] == ["qr", "plain"]
    with pytest.raises(ValueError, match="ways must be among plain, hash, qr, mixed: got crt; name some, or none"):
        variants(Sweep(ways=("qr", "crt")), WAYS, TABLES)


@pytest.mark.parametrize("kind", ["mixed_radix", "chinese_remainder"])
def test_tensor_trains_have_the_bytes_of_a_ratio(kind: TablesKind) -> None:
    tables = [Table(name=f"t{rows}", rows=rows, dim=16, features=(f"f{rows}",)) for rows in (40, 3000, 20_000)]
    ways = {"tensor-train": TablesConfig(kind=kind, operation="tensor_train", partitions=3)}
    found = variants(Sweep(ratios=(2, 20, 100, 1000)), ways, tables)
    plain = 4 * 16 * sum(table.rows for table in tables)
    assert len(found) == 3  # not even rank 1 needs a thousandth
    for variant, ratio in zip(found, (2, 20, 100), strict=False):
        assert 0.8 * plain / ratio < variant.bytes <= plain / ratio


def filled(folder: Path, compared: list[Variant], seeds: tuple[int, ...] = (0, 1, 2)) -> Runs:
    """Runs whose AUC is .5, .6 and .7 in that order of the seeds, less a hundredth per variant."""
    runs = Runs(str(folder), {"rows": 1}, seeds, write=True)
    for number, variant in enumerate(compared):
        for seed in seeds:
            auc = 0.5 + 0.1 * seed - 0.01 * number
            runs.add(variant, seed, {"val/auc": auc, "val/logloss": 1 - auc, "samples_per_s": 1000.0 * seed})
    return runs


def test_runs_are_found_again_by_settings_variant_and_seed(tmp_path: Path) -> None:
    plain, small, *_ = variants(SWEEP, WAYS, TABLES)
    runs = Runs(str(tmp_path), {"rows": 1}, (0, 1), write=True)
    runs.add(plain, 0, {"val/auc": 0.5})
    again = Runs(str(tmp_path), {"rows": 1}, (0,), write=True)
    assert again.finished(plain, 0)
    assert again.values(plain, "val/auc") == [0.5]
    assert not again.finished(plain, 1)
    assert not again.finished(small, 0)
    assert not Runs(str(tmp_path), {"rows": 2}, (0,), write=True).finished(plain, 0)


def test_only_the_writer_writes(tmp_path: Path) -> None:
    plain = variants(SWEEP, WAYS, TABLES)[0]
    other = Runs(str(tmp_path), {}, (0,), write=False)
    other.add(plain, 0, {"val/auc": 0.5})
    assert other.values(plain, "val/auc") == [0.5]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [5, -2, -1])  # the last one lacks but the end of the line
def test_half_a_line_costs_its_own_run_at_most(tmp_path: Path, kept: int) -> None:
    plain, small, *_ = variants(SWEEP, WAYS, TABLES)
    filled(tmp_path, [plain], seeds=(0, 1))
    path = tmp_path / "results.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first + second[:kept])
    runs = Runs(str(tmp_path), {"rows": 1}, (0, 1), write=True)
    assert runs.finished(plain, 0)
    assert runs.finished(plain, 1) == (kept == -1)
    runs.add(small, 0, {"val/auc": 0.25})
    runs.add(small, 1, {"val/auc": 0.75})
    again = Runs(str(tmp_path), {"rows": 1}, (0, 1), write=True)
    assert again.values(small, "val/auc") == [0.25, 0.75]
    assert again.finished(plain, 0)
    assert again.finished(plain, 1) == (kept == -1)


def test_seeds_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seeds must hold at least one seed: got none; give three to see a spread"):
        Runs(str(tmp_path), {}, (), write=True)


def test_table_has_sizes_means_and_deviations(tmp_path: Path) -> None:
    compared = variants(SWEEP, WAYS, TABLES)
    text = write_report(str(tmp_path), compared, filled(tmp_path, compared))
    assert (tmp_path / "results.md").read_text() == text
    header, _, first, second, *others = text.splitlines()
    assert header == "| way | size | parameters | MiB | AUC | log-loss | samples/s | seeds |"
    assert first == "| plain |  | 8,080 | 0.03 | 0.60000 ± 0.10000 | 0.40000 ± 0.10000 | 1,000 | 3 |"
    assert second.startswith("| hash | 5 collisions, threshold 1 | 1,616 | 0.01 | 0.59000 ± 0.10000 | 0.41000")
    assert len(others) == len(compared) - 2
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines[:4]] == [0, 1, 2, 0]
    assert lines[3]["variant"] == "hash-5-collisions-threshold-1"


def test_table_of_sizes_alone() -> None:
    lines = to_markdown(variants(SWEEP, WAYS, TABLES)[:2]).splitlines()
    assert lines == [
        "| way | size | parameters | MiB |",
        "| --- | --- | --- | --- |",
        "| plain |  | 8,080 | 0.03 |",
        "| hash | 5 collisions, threshold 1 | 1,616 | 0.01 |",
    ]


def test_plot_has_a_line_per_way_and_the_plain_tables_as_reference(tmp_path: Path) -> None:
    compared = variants(Sweep(collisions=(5, 2, 4), thresholds=(20,)), WAYS, TABLES)
    runs = filled(tmp_path, compared)
    figure = plot(compared, runs)
    for axes, metric in zip(figure.axes, ("val/auc", "val/logloss"), strict=True):
        assert axes.get_xscale() == "log"
        curves = [(bars.get_label(), bars.lines[0]) for bars in axes.containers if isinstance(bars, ErrorbarContainer)]
        assert len(curves) == len(axes.containers)
        drawn = {label: curve for label, curve in curves if curve.get_linestyle() == "-"}
        assert list(drawn) == list(WAYS)
        hashed = [v for v in compared if v.way == "hash" and v.tables.threshold == 1]
        assert [v.tables.collisions for v in hashed] == [5, 2, 4]
        memory, means = np.asarray(drawn["hash"].get_data()).tolist()
        assert memory == [v.bytes / 2**20 for v in hashed]
        assert means == [statistics.mean(runs.values(v, metric)) for v in hashed]
        crosses = [curve for _, curve in curves if curve.get_marker() == "x"]
        assert sorted(np.size(line.get_xdata()) for line in crosses) == [0, 0, 1, 1]
        (reference,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert set(np.asarray(reference.get_ydata())) == {statistics.mean(runs.values(compared[0], metric))}
