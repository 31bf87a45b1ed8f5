"""A run that begins with another one's model: rows and their moments follow their values to another vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dlrm_torchrec.datasets.windows.row_maps import row_maps
from dlrm_torchrec.schema import DatasetSpec, SparseFeature
from dlrm_torchrec.train.checkpoints.tables import read_dense, read_moments, read_table, saved_tables
from tests.prepared import SPEC, write_prepared
from tests.recipe import run_recipe

OLD = [f"shop {number}" for number in range(28)]
NEW = [*reversed(OLD[5:25]), *(f"new {number}" for number in range(12))]  # 20 known values and 12 new ones


def spec_of(values: list[str]) -> DatasetSpec:
    item = SparseFeature(name="item", rows=2 + len(values), encoding="vocab", vocabulary=f"{len(values)} values")
    return replace(SPEC, sparse=(item, SPEC.sparse[1]))


def write_data(folder: Path, values: list[str], seed: int) -> Path:
    day = write_prepared(folder / "day-1", {"train": [[600]]}, seed=seed, spec=spec_of(values))
    (day / "vocab").mkdir()
    pq.write_table(pa.table({"value": values}), day / "vocab/item.parquet")
    return folder


def train(folder: Path, *options: str, ranks: int) -> Path:
    arguments = ["demo", f"--run-dir={folder}", "--batch-size=60", "--bottom", "16", "8", "--top", "16", "1", *options]
    run_recipe("train_dlrm_daily", arguments, ranks)
    return folder / "demo/checkpoints/step-00000010"


def tables(checkpoint: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weights and moments of each table."""
    found = {table.name: table for table in saved_tables(str(checkpoint))}
    return {
        name: (read_table(str(checkpoint), table), read_moments(str(checkpoint), table)["momentum1"])
        for name, table in found.items()
    }


@pytest.mark.parametrize(
    ("ranks", "sharding", "optimizer"),
    [(1, "table_wise", "rowwise_adagrad"), (2, "row_wise", "rowwise_adagrad"), (2, "column_wise", "adagrad")],
)
def test_rows_follow_their_values(tmp_path: Path, ranks: int, sharding: str, optimizer: str) -> None:
    kind = f"--sparse.kind={optimizer}"
    old = train(tmp_path / "old", kind, f"--data={write_data(tmp_path / 'a', OLD, 0)}", ranks=ranks)
    frozen = [kind, f"--data={write_data(tmp_path / 'b', NEW, 1)}", "--sparse.lr=0", "--dense.lr=0"]
    frozen += ["--sharding.kind", sharding] if ranks > 1 else []
    new = train(tmp_path / "new", f"--start-from={old.parents[1]}", *frozen, ranks=ranks)
    fresh = train(tmp_path / "fresh", *frozen, ranks=ranks)
    (before, moments_before), (after, moments_after), (initial, _) = (
        tables(each)["t_item"] for each in (old, new, fresh)
    )
    assert after.shape == (2 + len(NEW), 8)
    assert torch.equal(after[:2], before[:2])  # missing and unseen
    for place, value in enumerate(NEW, 2):
        if value in OLD:
            row = OLD.index(value) + 2
            assert torch.equal(after[place], before[row])
            # what the day added to the moments since, of other rows of the same values
            assert (moments_after[place] >= moments_before[row]).all()
        else:
            assert torch.equal(after[place], initial[place])
    assert torch.equal(tables(new)["t_tags"][0], tables(old)["t_tags"][0])
    known = [place for place, value in enumerate(NEW, 2) if value in OLD]
    rows = [OLD.index(NEW[place - 2]) + 2 for place in known]
    added = moments_after[known] - moments_before[rows]
    assert not torch.equal(added, torch.zeros_like(added))
    for name, weight in read_dense(str(new)).items():
        assert torch.equal(weight, read_dense(str(old))[name]), name


def test_maps_of_plain_ids_and_unfit_features(tmp_path: Path) -> None:
    data = {"old_data": str(tmp_path), "data": str(tmp_path)}
    larger = replace(SPEC, sparse=(replace(SPEC.sparse[0], rows=40), SPEC.sparse[1]))
    maps = row_maps(SPEC.to_json(), spec=larger, **data)
    assert list(maps) == ["t_item"]
    assert maps["t_item"].old_rows == 30
    assert np.array_equal(maps["t_item"].rows, [*range(30), *[-1] * 10])
    hashed = replace(SPEC, sparse=(replace(SPEC.sparse[0], encoding="hash"), SPEC.sparse[1]))
    with pytest.raises(ValueError, match=r"feature 'item' must give its values the ids that they had in .*: got hash"):
        row_maps(SPEC.to_json(), spec=hashed, **data)
    assert row_maps(SPEC.to_json(), spec=SPEC, **data) == {}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "a", OLD, 0)
    with pytest.raises(
        RuntimeError, match=r"nowhere/checkpoints must hold a whole checkpoint: got those of steps \[\]"
    ):
        train(tmp_path / "run", f"--data={data}", f"--start-from={tmp_path}/nowhere", ranks=1)
