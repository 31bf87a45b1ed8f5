"""recipes/plan_sharding.py for recipes of sequences: MLPerf's dlrm_v4_hstu, its memory counted again, and a twin."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.sharding.cluster.machines import B200
from tests.datasets.sequences.logs import random_log
from tests.datasets.sequences.test_stored import write_log
from tests.recipe import load_recipe, run_recipe
from tests.recipes.test_plan_sharding import CHANGES, plan, rank_bytes, recipe, shards

GB = 10**9
TABLES = {  # rows, as the reference's README lists them; those of events have an id per token
    "item": 9_390_624, "artist": 1_293_395, "album": 3_367_692, "uid": 1_000_001, "user_x_artist": 100_000_000,
    "user_x_album": 40_000_000, "user_x_hour": 24_000_000, "item_x_hour": 40_000_000, "artist_x_hour": 32_000_000,
    "user_x_is_organic": 2_000_000, "user_x_artist_x_hour": 40_000_000,
}  # fmt: skip
EVENTS, CONTEXT, LONGEST, DIM = 3, 8, 4096, 512


def activations(samples: int) -> float:
    """Bytes that the dense part of MLPerf's model keeps in a step, added up from the layers' widths by hand.

    Chunks of at most 65,536 tokens and the longest sample's are kept one at a time, in float32; the gradients of rows
    are always kept.
    """
    tokens, context = samples * 4087, samples * CONTEXT
    uvqk, attended, side_by_side = 4 * DIM, DIM, 3 * DIM
    layer = 2 * DIM + uvqk + DIM + 2 * attended + 2 * side_by_side  # input, norm; U after SiLU; norm; dropout keeps one
    token = 2 * DIM + 8 + 3 * (3 * DIM + DIM) + DIM  # artist and album; action; three MLPs; dropout
    candidate = 2 * EVENTS * DIM + 6 * DIM + 8 * DIM
    kept = 4 * ((3 + 1) * layer * (tokens + context) + token * tokens + candidate * samples) + 4 * 8 * tokens
    share = min(1.0, (65_536 + LONGEST) / tokens)
    return share * kept + 4 * DIM * (EVENTS * tokens + context)


def test_mlperf_is_planned_with_its_activations(tmp_path: Path) -> None:
    (estimate,), printed = plan(tmp_path, "train_hstu", "--preset=mlperf", "--topology", "8x8:b200", "2x8:h100", code=3)
    assert (estimate["topology"], estimate["batch_size"]) == ("8x8:b200", 8192 // 64)
    tables = {table["name"].removeprefix("t_"): table for table in estimate["tables"]}
    assert {name: table["rows"] for name, table in tables.items()} == TABLES
    assert {table["dim"] for table in tables.values()} == {DIM}
    for name, table in tables.items():
        assert table["pooling_factors"] == [4087 if name in ("item", "artist", "album") else 1]

    held = activations(128)
    assert estimate["activation_bytes"] == pytest.approx(held, abs=1)
    assert min(estimate["hbm_reserved"]) > held + 0.15 * B200.hbm_bytes
    copies = {name: table["sharding_type"] == "data_parallel" for name, table in tables.items()}
    rows = sum(rows if copies[name] else ceil(rows / 64) for name, rows in TABLES.items())  # of the fullest rank
    stored = [
        sum(s["weight_bytes"] + s["optimizer_bytes"] for t in tables.values() for s in t["shards"] if s["rank"] == rank)
        for rank in range(64)
    ]
    assert max(stored) == rows * (4 * DIM + 4)  # row-wise Adagrad: a moment per row
    assert 0 < max(rank_bytes(estimate)) - max(stored) < 2 * 128 * 4087 * EVENTS * (4 * DIM + 8)  # buffers

    fullest = max(rank_bytes(estimate)) + held
    (compared,) = [line for line in printed.splitlines() if line.startswith("8x8:b200 ")]
    assert f" {fullest / 1e9:.3f} " in compared
    ranks = [line.split() for line in printed.splitlines() if re.match(r" *0-6\d ", line)]
    assert [(row[4], row[5]) for row in ranks] == [(f"{held / 1e9:.3f}", f"{fullest / 1e9:.3f}")]
    assert f"{held / 1e9:.2f}" in (tmp_path / "plan.html").read_text()

    refusal = printed.partition("Nearest changes that fit, each planned:")[2]
    found = re.findall(r"([a-z][a-z' ]+) \((--[^,)]+)[^)]*\): ([\d.]+) of [\d.]+ GB", refusal)
    changes = {what: (option, size) for what, option, size in found}
    assert {*changes} == {*CHANGES, "a smaller batch"} - {"a smaller optimizer"}
    option, size = changes["a smaller batch"]
    (smaller,), _ = plan(tmp_path, "train_hstu", "--preset=mlperf", "--topology=2x8:h100", "--", *option.split())
    assert (max(rank_bytes(smaller)) + activations(smaller["batch_size"])) / 1e9 == pytest.approx(
        float(size), abs=0.006
    )
    both = recipe("diff", f"{tmp_path}/plan.json", f"{tmp_path}/plan.json")
    assert both.strip() == "2x8:h100\nthe same plan"
    assert "t_item on 2x8:h100: 9,390,624 x 512" in recipe("explain", "t_item", f"{tmp_path}/plan.json")


def test_fit_keeps_what_a_small_memory_can_hold(tmp_path: Path) -> None:
    mlperf = ["train_hstu", "--preset=mlperf", "--topology=1x8:h100"]
    (fitted,), printed = plan(tmp_path, *mlperf, "--fit")
    own = json.loads((tmp_path / "tables.json").read_text())
    compressed = {name.removeprefix("t_") for name, changed in own.items() if changed}
    assert {"user_x_artist", "user_x_album", "item_x_hour", "user_x_artist_x_hour"} <= compressed
    assert not {"artist", "album", "uid"} & compressed  # looked up per event, or small
    free = 0.85 * 80 * GB - activations(1024)
    assert 0.8 * free < max(rank_bytes(fitted)) < free
    assert "lookups per sample read rows of other ids" in printed
    assert 4 * DIM * sum(table["rows"] for table in fitted["tables"]) < 30 * GB


TWIN = ["--rows=2", "--eval-every=0"]


def test_fitted_tables_of_single_ids_are_trained_by_their_plan(tmp_path: Path) -> None:
    (small,), _ = plan(
        tmp_path, "train_hstu", "--preset=mlperf-twin", "--topology=1x2:cpu", "--fit", "--fit-bytes=1e6", "--", *TWIN
    )
    assert sum(4 * table["rows"] * (table["dim"] + 1) for table in small["tables"]) <= 1e6
    assert sum(4 * table["rows"] * (table["dim"] + 1) for table in small["tables"]) > 0.9e6
    own = json.loads((tmp_path / "tables.json").read_text())
    assert {changed["kind"] for changed in own.values() if changed} == {"chinese_remainder"}
    options = [f"--tables.file={tmp_path}/tables.json", f"--plan={tmp_path}/plan.json", f"--run-dir={tmp_path}/run"]
    metrics = run_recipe("train_hstu", ["mlperf-twin", *TWIN, *options], 2)
    trained = 2 * (4_763 - 32) - metrics["val/samples"]  # events of two users, each of them after the first 32
    assert metrics["steps"] == ceil(trained / 256)
    (saved,) = (tmp_path / "run/mlperf-twin/checkpoints").glob("*/checkpoint.json")
    assert shards(json.loads(saved.read_text())["plan"]) == shards(small)


@pytest.mark.parametrize(("history", "ids"), [(8, 9), (32, 26)])
def test_a_plan_counts_the_ids_that_samples_have(tmp_path: Path, history: int, ids: float) -> None:
    options = ["--samples.history", str(history), "--samples.candidates", "1"]
    (estimate,), _ = plan(tmp_path, "train_hstu", "--topology=1x2:cpu", "--", *options)
    pooling: dict[str, Any] = {table["name"]: table["pooling_factors"] for table in estimate["tables"]}
    assert pooling == {"t_item": [ids], "t_category": [ids], "t_segment": [1]}


def test_plans_read_events_only_where_settings_follow_from_them(tmp_path: Path) -> None:
    write_log(tmp_path / "log", random_log(0))
    module, data = load_recipe("plan_sharding"), str(tmp_path / "log")
    for name, splits in (("train_hstu", {"train", "val"}), ("train_hstu_next_item", {"train", "val", "test"})):
        trained = load_training_recipe(name)
        counted = module.summary_of(trained, replace(trained.PRESETS["demo"], data=data))
        assert {*counted.rows} == splits
        assert counted.samples > 0
        assert module.summary_of(trained, trained.Config(data=data)).rows == {"users": 30}
