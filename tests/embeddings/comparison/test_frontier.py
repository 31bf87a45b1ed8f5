"""Which way is best at equal bytes, and how quality falls with size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dlrm_torchrec.embeddings.assignments import Assignment
from dlrm_torchrec.embeddings.comparison.frontier import Form, envelope, fit
from dlrm_torchrec.embeddings.comparison.report import plot, write_report
from dlrm_torchrec.embeddings.comparison.sweep import Sweep
from dlrm_torchrec.embeddings.comparison.variants import Runs, Variant, variants
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.schema import Table

TABLES = [Table(name=name, rows=rows, dim=16, features=(name,)) for name, rows in (("a", 30), ("b", 50_000))]
WAYS = {
    "plain": TablesConfig(),
    "hash": TablesConfig(kind="hash"),
    "qr": TablesConfig(kind="quotient_remainder"),
    "concat": TablesConfig(kind="hashes", operation="concat", partitions=4),
}
FORMS: tuple[Form, ...] = ("power", "exponential")
RATIOS = (2, 10, 50, 100, 1000)


def compared() -> list[Variant]:
    return variants(Sweep(ratios=RATIOS), WAYS, TABLES)


def filled(folder: Path, auc: dict[tuple[str, float], tuple[float, ...]]) -> Runs:
    """Runs with these AUCs by seed of some ways at some ratios, and worse ones of all others."""
    runs = Runs(str(folder), {}, (0, 1), write=True)
    for variant in compared():
        for seed, value in enumerate(auc.get((variant.way, variant.ratio), (0.6, 0.61))):
            runs.add(variant, seed, {"val/auc": value, "val/logloss": 1 - value, "samples_per_s": 1.0})
    return runs


def test_every_way_has_almost_the_bytes_that_a_ratio_allows_and_small_tables_stay_plain() -> None:
    plain, *others = compared()
    assert [v.ratio for v in others if v.way == "hash"] == list(RATIOS)
    assert [v.ratio for v in others if v.way == "qr"] == [2, 10, 50, 100]  # two partitions need 448 rows
    for variant in others:
        least = 0.99 if variant.way == "hash" else 0.25  # a quotient is a whole number, and hashes need few rows
        assert least * plain.bytes <= variant.ratio * variant.bytes <= plain.bytes
    (smallest,) = (v for v in others if v.way == "hash" and v.ratio == 1000)
    assert smallest.parameters == 16 * (smallest.tables.max_rows + min(30, smallest.tables.max_rows))


def test_clusters_are_compared_at_the_ratio_that_their_codes_and_rows_reach(tmp_path: Path) -> None:
    codes = torch.arange(50_000) % 1000
    assigned = Assignment(assigned=Assigned([codes], complementary=False), made="for a test", hash_classes=200)
    (tmp_path / "made").mkdir()
    save_file(assigned.tensors(), tmp_path / "made/b.safetensors", assigned.metadata())
    plain, clusters = variants(Sweep(ways=("plain",), ratios=RATIOS, assignments=(f"{tmp_path}/made/",)), WAYS, TABLES)
    assert (clusters.way, clusters.name) == ("clusters", "clusters-made")
    assert clusters.bytes == 64 * (30 + 1200) + 2 * 50_000
    assert plain.bytes / clusters.bytes == pytest.approx(17.9, abs=0.1)
    assert clusters.ratio == 10
    found = filled(tmp_path, {})
    found.add(clusters, 0, {"val/auc": 0.5})
    assert found.finished(clusters, 0)
    other = Assignment(assigned=Assigned([codes.flip(0)], complementary=False), made="for a test", hash_classes=200)
    save_file(other.tensors(), tmp_path / "made/b.safetensors", other.metadata())
    assert not found.finished(clusters, 0)  # other codes, other runs


def test_the_best_way_of_each_ratio_and_those_within_the_spread(tmp_path: Path) -> None:
    auc: dict[tuple[str, float], tuple[float, ...]] = {("plain", 1): (0.81, 0.83), ("qr", 10): (0.80, 0.81)}
    auc |= {("hash", 10): (0.79, 0.81), ("concat", 10): (0.799, 0.809)}  # a thousandth worse with each seed
    best = envelope(compared(), filled(tmp_path, auc))
    assert [point.variant.ratio for point, _ in best] == [1, *RATIOS]
    assert [(point.variant.way, round(point.mean, 4)) for point, _ in best][:3:2] == [("plain", 0.82), ("qr", 0.805)]
    assert [each.variant.way for each in best[2][1]] == ["hash"]


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_found_again_and_fits_better_than_the_other(form: Form) -> None:
    random = np.random.default_rng(3)
    shares = 1 / np.geomspace(1, 10_000, 9)
    for _ in range(3):
        rate = float(random.uniform(0.2, 0.8) if form == "power" else random.uniform(1, 50))
        curve = shares**-rate if form == "power" else np.exp(-rate * shares)
        quality = 0.82 - 0.004 * curve
        power, exponential = (fit(shares.tolist(), quality.tolist(), each) for each in FORMS)
        found, other = (power, exponential) if form == "power" else (exponential, power)
        assert found.rate == pytest.approx(rate, rel=0.01)
        assert found.top == pytest.approx(0.82, abs=1e-3)
        assert 10 * found.residual < other.residual


def test_the_report_says_which_way_to_take_and_how_quality_falls(tmp_path: Path) -> None:
    plain, *others = compared()
    auc: dict[tuple[str, float], tuple[float, ...]] = {("plain", 1): (0.82, 0.82)}
    auc |= {("hash", v.ratio): (0.83 - 0.01 * (plain.bytes / v.bytes) ** 0.25,) * 2 for v in others if v.way == "hash"}
    text = write_report(str(tmp_path), compared(), filled(tmp_path, auc))
    size = next(v.bytes for v in others if v.way == "hash" and v.ratio == 50)
    lost = 0.01 * (plain.bytes / size) ** 0.25 - 0.01
    row = f"| 50 x | {size / 2**20:,.3f} | hash | {0.82 - lost:.5f} ± 0.00000 | {lost:.5f} ± 0.00000 |  |\n"
    assert row in text
    assert "| 1,000 x |" in text
    (fitted,) = (line for line in text.splitlines() if line.startswith("| hash | 0.83"))
    assert "s^-0.25 |" in fitted
    assert fitted.endswith("| power |")


def test_the_picture_names_the_best_way_of_each_ratio(tmp_path: Path) -> None:
    runs = filled(tmp_path, {("plain", 1): (0.82, 0.82), ("concat", 1000): (0.8, 0.8)})
    axes, _ = plot(compared(), runs).axes
    named = [text.get_text() for text in axes.texts]
    assert (named[0], named[-1]) == ("plain", "concat")
    assert len(named) == 1 + len(RATIOS)
