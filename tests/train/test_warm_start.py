"""A run that begins with another one's model: rows and their moments follow their values to another vocabulary."""

from __future__ import annotations

import shutil
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
FROZEN = ("--sparse.lr=1e-30", "--dense.lr=1e-30")  # too small to move a weight; 0 would mean: by the number of rows


def spec_of(values: list[str]) -> DatasetSpec:
    item = SparseFeature(name="item", rows=2 + len(values), encoding="vocab", vocabulary="-".join(values)[:40])
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
    frozen = [kind, f"--data={write_data(tmp_path / 'b', NEW, 1)}", *FROZEN]
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


@pytest.mark.parametrize(("ranks", "sharding"), [(1, "table_wise"), (2, "row_wise"), (2, "data_parallel")])
def test_rows_begin_anew_where_a_vocabulary_goes_on(tmp_path: Path, ranks: int, sharding: str) -> None:
    data = write_data(tmp_path / "days", OLD, 0)
    options = [f"--data={data}", "--checkpoint.keep=3", *(["--sharding.kind", sharding] if ranks > 1 else [])]
    first = train(tmp_path / "run", *options, ranks=ranks)
    anew = [5, 17]  # ids whose values others replaced
    values = [f"other {place}" if place in anew else value for place, value in enumerate(OLD, 2)]
    write_data(tmp_path / "more", values, 1)
    file = tmp_path / "more/day-1/train/part-0.parquet"
    rows = pq.read_table(file)
    ids = rows["item"].to_numpy()
    rows = rows.set_column(3, "item", pa.array(np.where(np.isin(ids, anew), 0, ids), pa.int32()))
    pq.write_table(rows, file)  # nobody looks these ids up
    shutil.move(tmp_path / "more/day-1", data / "day-2")
    frozen = [*options, *FROZEN]
    train(tmp_path / "run", *frozen, ranks=ranks)
    before, after = tables(first)["t_item"], tables(first.with_name("step-00000020"))["t_item"]
    initial = tables(train(tmp_path / "fresh", *frozen, ranks=ranks))["t_item"][0]
    kept = [row for row in range(30) if row not in anew]
    assert torch.equal(after[0][kept], before[0][kept])
    assert torch.equal(after[0][anew], initial[anew])
    assert not torch.equal(before[0][anew], initial[anew])
    assert before[1][anew].gt(0).all()
    assert after[1][anew].eq(0).all()
    assert (after[1][kept] >= before[1][kept]).all()
    shuffled = [*reversed(OLD)]
    shutil.move(write_data(tmp_path / "moved", shuffled, 2) / "day-1", data / "day-3")
    with pytest.raises(
        RuntimeError, match=r"values of feature 'item' must keep their ids from .*day-2 to .*day-3: got"
    ):
        train(tmp_path / "run", *frozen, ranks=ranks)


def test_maps_of_plain_ids_and_unfit_features(tmp_path: Path) -> None:
    data = {"old_data": str(tmp_path), "last": "", "data": str(tmp_path)}
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
