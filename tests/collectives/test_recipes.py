"""Every training recipe on 16 ranks of two hosts, as on GPUs: ranks issue the same collectives, with tensors in place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.collectives.walked import RANKS, walk_recipe
from tests.recipe import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("train_*.py"))
TYPES = [
    "data_parallel",
    "table_wise",
    "column_wise",
    "table_column_wise",
    "row_wise",
    "table_row_wise",
    "grid_shard",
]
OPERATIONS = ["concat", "add", "mult", "path"]
SGD = ["--sparse.kind", "sgd"]  # every sharding type may train it

@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe(tmp_path: Path, recipe: str) -> None:
    metrics, _ = walk_recipe(recipe, tmp_path)
    assert len(metrics) == RANKS


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_a_sharding_type(tmp_path: Path, kind: str) -> None:
    walk_recipe("train_dlrm", tmp_path, *SGD, "--sharding.kind", kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_compositional_table(tmp_path: Path, operation: str, kind: str) -> None:
    if operation == "path" and kind in ("column_wise", "table_column_wise", "grid_shard"):
        pytest.skip("the networks of a path mix all columns")
    walk_recipe("train_dlrm_compositional", tmp_path, *SGD, "--sharding.kind", kind, "--tables.operation", operation)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("kind", TYPES)
def test_quantised_comms(tmp_path: Path, kind: str, precision: str) -> None:
    dims = ["--bottom", "64", "64"] # so that columns shards have 32
    walk_recipe("train_dlrm", tmp_path, *SGD, *dims, "--sharding.kind", kind, "--sharding.comms.forward", precision, "--sharding.comms.backward", precision)

@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 8, 16])
def test_nodes(tmp_path: Path, size: int) -> None:
    walk_recipe("train_dlrm_local_embeddings", tmp_path, "--node-size", str(size), "--average-every", "2")
