"""Vectors of checkpoints and packages are those of the definitions, for every way to store a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dlrm_torchrec.cli.vectors.source import Source, open_source
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import stored_config, write_tables
from dlrm_torchrec.train.checkpoints.folder import checkpoint_path
from dlrm_torchrec.train.checkpoints.tables import read_table, saved_tables
from tests.embeddings.compositional.reference import vector
from tests.recipe import load_recipe, run_recipe

DIM = 16
SHORT = ["demo", "--rows=2048", "--batch-size=256", "--eval-every=0"]
TABLES = {table.name: table for table in demo_spec().tables(dim=DIM)}
WAYS = {
    "t_id_1": TablesConfig(),
    "t_id_2": TablesConfig(kind="hashes", operation="concat", threshold=100),
    "t_id_3": TablesConfig(kind="hot_cold", operation="mult", max_rows=150),
    "t_id_4": TablesConfig(kind="chinese_remainder", operation="add", partitions=3),
    "t_id_5": TablesConfig(kind="quotient_remainder", operation="path", hidden=6),
    "t_id_6": TablesConfig(kind="hot_cold", operation="concat"),
    "t_id_7": TablesConfig(kind="mixed_radix", operation="path", hidden=0, partitions=3, collisions=0),
    "t_list_0": TablesConfig(kind="quotient_remainder", operation="feature_generation", threshold=100),
    "t_list_1": TablesConfig(kind="quotient_remainder", operation="mult", data_type="fp16"),
    "t_id_0": TablesConfig(kind="mixed_radix", operation="tensor_train", rank=6, partitions=3, threshold=20),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks whose tables are stored in every way."""
    folder = tmp_path_factory.mktemp("run")
    save_file({name: torch.arange(table.rows - 1, 0, -3) for name, table in TABLES.items()}, folder / "frequent")
    write_tables(str(folder / "tables.json"), {name: way(name, folder) for name in WAYS}, TablesConfig())
    run_recipe("train_dlrm", [*SHORT, f"--tables.file={folder}/tables.json", f"--run-dir={folder}"], 2)
    return folder / "demo"


def way(name: str, folder: Path) -> TablesConfig:
    """How a table is stored; the demo's ids are in no order, so the folder has a list of frequent ones."""
    config = WAYS[name]
    return replace(config, frequent=f"{folder}/frequent") if config.kind == "hot_cold" else config


def opened(folder: Path, feature: str) -> Source:
    return open_source(str(folder), feature, step=None, data="", least_seen=1)


def some_ids(table: str) -> torch.Tensor:
    rows = TABLES[table].rows
    return torch.cat([torch.randint(rows, (30,)), torch.tensor([0, rows - 1])])


@pytest.mark.parametrize("name", WAYS)
def test_a_checkpoint_has_the_vectors_of_the_definition(run: Path, name: str) -> None:
    config = stored_config(TABLES[name], way(name, run.parent))
    path = checkpoint_path(f"{run}/checkpoints")
    weight = read_table(path, {saved.name: saved for saved in saved_tables(path)}[name]).double()
    ids = some_ids(name)
    if isinstance(config, CompositionalEmbeddingBagConfig):
        expected = torch.stack([vector(config.operation, config.partition, weight, x) for x in ids.tolist()])
    else:
        expected = weight[ids]
    assert isinstance(config, CompositionalEmbeddingBagConfig) == (WAYS[name].kind != "plain")
    found = opened(run, TABLES[name].features[0]).read(ids)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def quantise(run: Path, recipe: str, **options: Any) -> Path:
    module = load_recipe("quantize_dlrm")
    module.main(module.Config(recipe=recipe, run=str(run), calibration_batches=1, max_auc_loss=1.0, **options))
    return run / "package"


def test_a_package_has_the_vectors_of_its_run_except_for_rounding(run: Path) -> None:
    package = quantise(run, "train_dlrm", tables="fp32", table_types={"t_id_1": "int8"})
    for name in WAYS:
        feature, ids = TABLES[name].features[0], some_ids(name)
        trained, served = (opened(folder, feature).read(ids) for folder in (run, package))
        step = (trained.amax(1) - trained.amin(1)).max() / 255  # of rows of 256 levels
        torch.testing.assert_close(served, trained, rtol=1e-5, atol=float(step) if name == "t_id_1" else 1e-6)
        assert not torch.equal(served, trained) or name != "t_id_1"
    with pytest.raises(ValueError, match=r"step must be of a run: got 3 for the package .*; leave out --step"):
        open_source(str(package), "id_1", step=3, data="", least_seen=1)


def test_narrow_tables_have_the_vectors_that_the_model_gets(tmp_path: Path) -> None:
    run_recipe("train_dlrm", [*SHORT, "--tables.kind=mixed_dimension", f"--run-dir={tmp_path}"], 1)
    run = tmp_path / "demo"
    path = checkpoint_path(f"{run}/checkpoints")
    saved = {each.name: each for each in saved_tables(path)}["t_id_7"]
    assert saved.dim < DIM
    rows, ids = read_table(path, saved), some_ids("t_id_7")
    found = opened(run, "id_7").read(ids)
    assert found.shape == (len(ids), DIM)
    matrix = torch.linalg.lstsq(rows[ids].double(), found.double()).solution  # linear, and not of full rank
    torch.testing.assert_close(rows[ids].double() @ matrix, found.double(), rtol=1e-5, atol=1e-6)
    package = quantise(run, "train_dlrm", tables="fp32")
    torch.testing.assert_close(opened(package, "id_7").read(ids), found, rtol=1e-5, atol=1e-6)
