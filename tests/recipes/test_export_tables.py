"""recipes/export_tables.py: whole tables of any run, and runs that begin with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows
from dlrm_torchrec.embeddings.initialize import fill_table
from tests.recipe import load_recipe, run_recipe

ONE_STEP = ["demo", "--rows=64", "--batch-size=64", "--eval-every=0", "--sparse.kind=sgd", "--sparse.lr=1e-30"]
TABLES = {table.name: table for table in demo_spec().tables(dim=16)}


def export(run: Path, output: Path, **options: Any) -> dict[str, list[int]]:
    recipe = load_recipe("export_tables")
    return recipe.main(recipe.Config(run=str(run), output=str(output), **options))


def drawn(name: str) -> torch.Tensor:
    """The table as any run of seed 0 begins with it."""
    weights = torch.empty(TABLES[name].rows, 16)
    fill_table(weights, [InitialRows.plain(len(weights))], seed=0, table=name)
    return weights


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that learns nothing, tables by rows."""
    folder = tmp_path_factory.mktemp("run")
    run_recipe("train_dlrm", [*ONE_STEP, "--sharding.kind=row_wise", f"--run-dir={folder}"], 2)
    return folder / "demo"


def test_tables_are_whole(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = export(run, tmp_path)
    assert json.loads(capsys.readouterr().out) == shapes
    assert shapes == {name: [table.rows, 16] for name, table in TABLES.items()}
    for name in TABLES:
        assert torch.equal(load_file(tmp_path / f"{name}.safetensors")["weight"], drawn(name))


@pytest.mark.parametrize(("world_size", "kind"), [(1, "table_wise"), (2, "column_wise"), (2, "row_wise")])
def test_a_run_begins_with_them(tmp_path: Path, world_size: int, kind: str) -> None:
    given = torch.randn(TABLES["t_id_3"].rows, 16)
    (tmp_path / "given").mkdir()
    save_file({"weight": given}, tmp_path / "given/t_id_3.safetensors")
    options = [*ONE_STEP, f"--tables.pretrained={tmp_path}/given", f"--sharding.kind={kind}", f"--run-dir={tmp_path}"]
    run_recipe("train_dlrm", options, world_size)
    export(tmp_path / "demo", tmp_path / "out", format="parquet", tables=("t_id_3", "t_id_4"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["t_id_3.parquet", "t_id_4.parquet"]
    found = {name: pq.read_table(tmp_path / f"out/{name}.parquet").to_pydict() for name in ("t_id_3", "t_id_4")}
    assert torch.equal(torch.tensor(found["t_id_3"]["vector"]), given)
    assert torch.equal(torch.tensor(found["t_id_4"]["vector"]), drawn("t_id_4"))
    assert found["t_id_4"]["id"] == list(range(TABLES["t_id_4"].rows))


def test_what_is_not_there_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tables must be ones of .*: got t_id_9; choose of t_id_0, "):
        export(run, tmp_path, tables=("t_id_9",))
    with pytest.raises(ValueError, match=r"must hold a whole checkpoint: got those of steps \[\]; name another run"):
        export(tmp_path, tmp_path)
