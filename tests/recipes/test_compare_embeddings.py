"""recipes/compare_embeddings.py: what it counts, trains once, writes, and finds."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.criteo import KAGGLE_ROWS
from tests.prepared import write_prepared
from tests.recipe import load_recipe, run_recipe


def counts(*options: str) -> dict[str, int]:
    recipe = load_recipe("compare_embeddings")
    return recipe.main(*parse(recipe.PRESETS, ["criteo-kaggle", "--data=synthetic", "--count", *options]))


COLLISIONS = {2: (270.10, 270.10), 3: (180.07, 180.07), 4: (135.05, 135.05), 5: (108.04, 108.04), 6: (90.03, 90.04)}
PUBLISHED = {  # millions of parameters of arXiv 1909.02107's tables, computed from its formulas and row counts
    "plain": 540.201,
    **{f"hash-{count}-collisions-threshold-1": hashed for count, (hashed, _) in COLLISIONS.items()},
    **{f"qr-mult-{count}-collisions-threshold-1": qr for count, (_, qr) in COLLISIONS.items()},
    "hash-7-collisions-threshold-1": 77.17,
    "qr-mult-7-collisions-threshold-1": 77.17,
    "hash-60-collisions-threshold-1": 9.0036,
    "qr-mult-60-collisions-threshold-1": 9.0286,
    "qr-mult-4-collisions-threshold-20": 135.0524,
    "qr-mult-4-collisions-threshold-200": 135.0540,
    "qr-mult-4-collisions-threshold-2000": 135.0895,
    "qr-mult-4-collisions-threshold-20000": 135.6196,
    "path-16-4-collisions-threshold-1": 135.107,
    "path-32-4-collisions-threshold-1": 135.162,
    "path-64-4-collisions-threshold-1": 135.272,
    "path-128-4-collisions-threshold-1": 135.491,
}  # fmt: skip


def test_criteo_kaggle_has_the_published_counts() -> None:
    found = counts()
    for name, millions in PUBLISHED.items():
        digits = len(str(millions).partition(".")[2])
        assert found[name] / 1e6 == pytest.approx(millions, abs=0.5001 * 10 ** -max(digits, 2)), name
    for collisions in (2, 3, 4, 5, 6, 7, 60):
        quotients = sum(-(-rows // collisions) for rows in KAGGLE_ROWS)
        suffix = f"{collisions}-collisions-threshold-1"
        assert found[f"hash-{suffix}"] == 16 * quotients
        for operation in ("mult", "add", "features"):
            assert found[f"qr-{operation}-{suffix}"] == 16 * (quotients + 26 * collisions)
        assert found[f"qr-concat-{suffix}"] == 8 * (quotients + 26 * collisions)
        assert found[f"path-0-{suffix}"] == 16 * (quotients + 26 * collisions * 16)
    smallest = counts("--sweep.collisions", "0", "--sweep.ways", "qr-mult", "hash")
    assert round(smallest["qr-mult-0-collisions-threshold-1"] / 1e6, 3) == 0.461
    assert not any("hash-0" in name for name in smallest)


def test_presets_compare_every_way_and_size_and_show_plain_ones() -> None:
    recipe = load_recipe("compare_embeddings")
    demo, sweep = (
        [v.name for v in recipe.variants(cfg.sweep, recipe.WAYS, cfg.shape.tables(dim=16))]
        for cfg in (recipe.PRESETS["demo"], recipe.PRESETS["sweep"])
    )
    assert len(demo) == 10
    assert len(sweep) == len(set(sweep)) == 1 + 12 * (7 + 4) + 4
    assert set(demo) <= set(sweep)
    criteo = recipe.PRESETS["criteo-kaggle"]
    assert [v.name for v in recipe.variants(criteo.sweep, recipe.WAYS, criteo.shape.tables(dim=16))] == sweep
    assert (criteo.bottom, criteo.top) == ((512, 256, 64, 16), (512, 256, 1))
    assert (criteo.batch_size, criteo.epochs, len(criteo.seeds)) == (128, 1, 5)
    rows = [feature.rows for feature in recipe.PRESETS["sweep"].shape.sparse]
    for low, high in ((0, 20), (20, 200), (200, 2000), (2000, 20_000), (20_000, 1 << 20)):
        assert any(low < count <= high for count in rows)


def test_the_frontier_has_ways_of_equal_bytes_from_2_to_10_000_times() -> None:
    recipe = load_recipe("compare_embeddings")
    cfg = recipe.PRESETS["frontier"]
    plain, *others = recipe.variants(cfg.sweep, recipe.WAYS, cfg.shape.tables(dim=16))
    assert plain.parameters == 16 * sum(feature.rows for feature in cfg.shape.sparse)
    for ratio in (2, 10, 30, 100, 1000, 10_000):
        ours = {variant.way: variant for variant in others if variant.ratio == ratio}
        assert {"hash", "hashes-add", "hashes-concat", "hot-hash", "hot-concat"} <= ours.keys()
        assert (ratio == 10_000) != ("hot-cold" in ours)  # eight tables of 14 rows cannot tell all ids apart
        assert 0.95 * plain.bytes / ratio < ours["hash"].bytes
        assert max(variant.bytes for variant in ours.values()) <= plain.bytes / ratio


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("prepared") / "data", {"train": [[700], [325]], "val": [[500]]})


def compare(prepared: Path, folder: Path, *options: str) -> dict[str, float]:
    """Two ways on small prepared data, by the preset for Criteo."""
    sweep = ["--sweep.ways", "plain", "qr-mult", "--sweep.collisions", "4", "--sweep.thresholds", "--seeds", "0"]
    arguments = ["criteo-kaggle", f"--data={prepared}", *sweep, f"--run-dir={folder}", *options]
    return run_recipe("compare_embeddings", arguments, 1)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "criteo-kaggle/results.jsonl").read_text().splitlines()]


def test_a_finished_run_is_not_run_again_and_settings_are_never_mixed(tmp_path: Path, prepared: Path) -> None:
    first = compare(prepared, tmp_path)
    (plain, qr) = lines(tmp_path)
    assert first == {line["variant"]: line["metrics"]["val/auc"] for line in (plain, qr)}
    assert plain["metrics"]["steps"] == 9  # 1025 rows in batches of 128
    assert plain["metrics"]["val/samples"] == 500
    assert plain["metrics"]["samples_per_s"] > 0
    assert (tmp_path / "criteo-kaggle/quality.png").stat().st_size > 10_000
    table = (tmp_path / "criteo-kaggle/results.md").read_text()
    for line, parameters in ((plain, 16 * 80), (qr, 16 * (8 + 4 + 13 + 4))):
        quality = [f"{line['metrics'][name]:.5f} ± 0.00000" for name in ("val/auc", "val/logloss")]
        assert f"{parameters:,} | 0.00 | {quality[0]} | {quality[1]} |" in table

    assert compare(prepared, tmp_path) == first  # nothing is trained
    assert lines(tmp_path) == [plain, qr]

    longer = compare(prepared, tmp_path, "--epochs=2", "--seeds", "0", "1")  # other settings, other runs
    assert len(lines(tmp_path)) == 6
    assert all(line["metrics"]["steps"] == 18 for line in lines(tmp_path)[2:])
    assert longer["plain"] == mean(line["metrics"]["val/auc"] for line in lines(tmp_path)[2::2])
    assert lines(tmp_path)[2]["metrics"]["val/auc"] != lines(tmp_path)[4]["metrics"]["val/auc"]  # seeds differ

    assert compare(prepared, tmp_path) == first  # the first settings' runs are still there
    assert len(lines(tmp_path)) == 6
    assert (tmp_path / "criteo-kaggle/results.md").read_text() == table


def test_two_ranks_find_what_one_rank_finds_on_synthetic_rows(tmp_path: Path) -> None:
    options = ["demo", "--rows=20480", "--batch-size=1024", "--sweep.ways", "qr-mult", "mixed-dims", "--seeds", "3"]
    one, two = (run_recipe("compare_embeddings", [*options, f"--run-dir={tmp_path}"], ranks) for ranks in (1, 2))
    found = [json.loads(line) for line in (tmp_path / "demo/results.jsonl").read_text().splitlines()]
    assert len(found) == 4  # two ranks have another speed
    assert one == {line["variant"]: line["metrics"]["val/auc"] for line in found[:2]}
    assert two == pytest.approx(one, abs=1e-5)
    for line in found:
        assert 0.6 < line["metrics"]["val/auc"] < line["metrics"]["teacher/auc"]
    assert abs(one["qr-mult-4-collisions-threshold-1"] - one["mixed-dims-alpha-0.3"]) > 1e-4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("data_seed", [0, 1])
def test_qr_mult_beats_hash_at_equal_parameters_by_more_than_the_spread(tmp_path: Path, data_seed: int) -> None:
    ways = ("plain", "hash", "qr-mult")
    options = ["demo", f"--data-seed={data_seed}", "--sweep.ways", *ways, f"--run-dir={tmp_path}"]
    run_recipe("compare_embeddings", options, 2, timeout_s=800)
    found = [json.loads(line) for line in (tmp_path / "demo/results.jsonl").read_text().splitlines()]
    auc, loss = (
        {way: [line["metrics"][metric] for line in found if line["variant"].startswith(way)] for way in ways}
        for metric in ("val/auc", "val/logloss")
    )
    assert [len(values) for values in auc.values()] == [3, 3, 3]
    assert min(auc["qr-mult"]) > max(auc["hash"])
    assert max(loss["qr-mult"]) < min(loss["hash"])
    for quality in (auc, loss):
        spread = max(stdev(quality["qr-mult"]), stdev(quality["hash"]))
        assert abs(mean(quality["qr-mult"]) - mean(quality["hash"])) > 5 * spread
    assert mean(auc["qr-mult"]) - mean(auc["hash"]) > 0.01  # of .819 with plain tables, .792 hashed
    assert mean(auc["plain"]) > mean(auc["qr-mult"])


def test_days_judge_managed_tables_and_hashes_of_at_most_equal_bytes(tmp_path: Path) -> None:
    options = ["--sweep.ratios=4", "--sweep.ways", "hash", "managed-lru", "--seeds=0"]
    arguments = ["drift", "--days=3", "--rows=2048", "--batch-size=128", f"--run-dir={tmp_path}"]
    metrics = run_recipe("compare_embeddings", [*arguments, *options], 1)
    recipe = load_recipe("compare_embeddings")
    _, cfg = parse(recipe.PRESETS, [*arguments, *options])
    hashed, managed = recipe.variants(cfg.sweep, recipe.WAYS, cfg.shape.tables(dim=16))
    assert set(metrics) == {hashed.name, managed.name}
    assert managed.parameters < hashed.parameters  # the map takes the rest
    assert 0.95 < managed.bytes / hashed.bytes < 1.02
    lines = [json.loads(line)["metrics"] for line in (tmp_path / "drift" / "results.jsonl").read_text().splitlines()]
    for found in lines:
        assert found["steps"] == 2 * 16  # the last day is only judged
        assert 0.5 < found["val/auc"] < found["teacher/auc"]
