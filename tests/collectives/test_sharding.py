"""Every sharding type of every kind of table on 16 ranks of two hosts, and what its collectives are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dlrm_torchrec.sharding.config import ShardingType
from tests.collectives.meeting import Meetings
from tests.collectives.walked import PER_HOST, RANKS, issued, walk_recipe

HOSTS = RANKS // PER_HOST
SGD = ["--sparse.kind", "sgd"]  # every sharding type may train it
WHOLE = {("alltoall", RANKS)}
ROWS_OF_A_HOST = {("reduce_scatter", PER_HOST), ("alltoall", HOSTS), ("allgather", PER_HOST)}
VECTORS: dict[ShardingType, set[tuple[str, int]]] = {  # collectives of vectors and gradients, and the ranks of each
    "data_parallel": set(),
    "table_wise": WHOLE,
    "column_wise": WHOLE,
    "table_column_wise": WHOLE,
    "row_wise": {("reduce_scatter", RANKS), ("allgather", RANKS)},
    "table_row_wise": ROWS_OF_A_HOST,
    "grid_shard": ROWS_OF_A_HOST,
}
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.uint8}
QUICK = [("row_wise", "path")]


def vectors(meetings: Meetings) -> set[tuple[str, int]]:
    return {(each.kind, len(each.ranks)) for each in issued(meetings, "comm_ops.py")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", VECTORS)
def test_plain_tables(tmp_path: Path, kind: ShardingType) -> None:
    _, meetings = walk_recipe("train_dlrm", tmp_path, *SGD, "--sharding.kind", kind)
    assert vectors(meetings) == VECTORS[kind]


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        pytest.param(kind, operation, marks=() if (kind, operation) in QUICK else pytest.mark.slow)
        for kind in VECTORS
        for operation in ("concat", "add", "mult", "path")
        if operation != "path" or kind not in ("column_wise", "table_column_wise", "grid_shard")
    ],
)
def test_compositional_tables(tmp_path: Path, kind: ShardingType, operation: str) -> None:
    options = ["--sharding.kind", kind, "--tables.operation", operation]
    _, meetings = walk_recipe("train_dlrm_compositional", tmp_path, *SGD, *options)
    assert vectors(meetings) == VECTORS[kind]
    later_rows = {len(each.ranks) for each in issued(meetings, "spread_group.py")}
    shares = {"row_wise": {RANKS}, "table_row_wise": {PER_HOST}, "grid_shard": {PER_HOST}}.get(kind, set())
    assert later_rows == (shares if operation in ("mult", "path") else set())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        (kind, precision)
        for kind in VECTORS
        for precision in PRECISIONS
        if precision != "int8" or ("row" not in kind and kind != "grid_shard")  # which sum on the wire
    ],
)
def test_quantised_vectors(tmp_path: Path, kind: ShardingType, precision: str) -> None:
    wide = ["--bottom", "512", "512"]  # so that 16 column shards are whole rows of int8
    formats = ["--sharding.comms.forward", precision, "--sharding.comms.backward", precision]
    _, meetings = walk_recipe("train_dlrm", tmp_path, *SGD, *wide, "--sharding.kind", kind, *formats)
    assert vectors(meetings) == VECTORS[kind]
    assert {dtype for each in issued(meetings, "comm_ops.py") for dtype in each.dtypes} <= {PRECISIONS[precision]}
