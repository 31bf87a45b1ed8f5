"""Frequent ids of tables whose ids are in no order: which rows they get, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import stored_config
from dlrm_torchrec.schema import Table

TABLE = Table(name="t_a", rows=1000, dim=8, features=("a",))
CONFIG = TablesConfig(kind="hot_cold", max_rows=200, hot=0.1, tail="hash")
IDS = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:50]


def classes(path: Path, table: Table = TABLE, config: TablesConfig = CONFIG) -> torch.Tensor:
    stored = stored_config(table, replace(config, frequent=str(path)))
    assert isinstance(stored, CompositionalEmbeddingBagConfig)
    assert sum(stored.partition.classes) == 200
    (found,) = stored.partition.of(torch.arange(table.rows))
    return found


def test_the_most_frequent_ids_of_the_file_keep_their_rows(tmp_path: Path) -> None:
    save_file({"t_a": IDS}, tmp_path / "f.safetensors")
    found = classes(tmp_path / "f.safetensors")
    assert sorted(found[IDS[:20]].tolist()) == list(range(20))
    assert int(found[IDS[20:]].min()) >= 20
    counts = found.bincount()
    assert (counts[:20] == 1).all()
    assert counts[20:].max() <= 6  # 1,000 numbers modulo 180, less the frequent ones


def test_a_short_list_is_filled_with_other_ids(tmp_path: Path) -> None:
    save_file({"t_a": torch.tensor([5, 900])}, tmp_path / "f.safetensors")
    found = classes(tmp_path / "f.safetensors")
    own = [5, 900, *(id_ for id_ in range(19) if id_ != 5)]
    assert sorted(found[own].tolist()) == list(range(20))


def test_a_vocabulary_needs_no_list() -> None:
    stored = stored_config(replace(TABLE, by_frequency=True), CONFIG)
    assert isinstance(stored, CompositionalEmbeddingBagConfig)
    assert stored.partition.of(torch.arange(20))[0].tolist() == list(range(20))
    assert stored.partition.listed_bytes == 0


def test_a_list_counts_in_bytes_and_in_the_identity(tmp_path: Path) -> None:
    save_file({"t_a": IDS}, tmp_path / "f.safetensors")
    config = replace(CONFIG, frequent=str(tmp_path / "f.safetensors"))
    stored = stored_config(TABLE, config)
    assert isinstance(stored, CompositionalEmbeddingBagConfig)
    assert stored.partition.listed_bytes == 20 * 8
    before = config.identity
    (tmp_path / "f.safetensors").rename(tmp_path / "g.safetensors")
    assert replace(config, frequent=str(tmp_path / "g.safetensors")).identity == before
    save_file({"t_a": IDS.flip(0)}, tmp_path / "g.safetensors")
    assert replace(config, frequent=str(tmp_path / "g.safetensors")).identity != before


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"t_b": IDS}, "frequent must be a file with ids of table 't_a': got .*; write it with python -m dlrm_"),
        (
            {"t_a": torch.arange(985, 1005)},
            r"frequent ids of table 't_a' must be int64 in \[0, 1000\): got torch.int64",
        ),
        ({"t_a": IDS.float()}, r"frequent ids of table 't_a' must be int64 in \[0, 1000\): got torch.float32"),
        ({"t_a": torch.zeros(20).long()}, r"frequent ids must be distinct, and ids in \[0, 1000\): got \[0, 0, 0"),
    ],
)
def test_what_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_file(tensors, tmp_path / "f")
    with pytest.raises(ValueError, match=message):
        classes(tmp_path / "f")


def test_ids_in_no_order_need_a_list() -> None:
    with pytest.raises(ValueError, match=r"ids of hot_cold table 't_a' must be in order of frequency, .*: got neither"):
        stored_config(TABLE, CONFIG)
