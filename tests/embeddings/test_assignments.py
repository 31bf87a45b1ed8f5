"""Files of assignments: what is written is read, tables are made of it, and what cannot be used is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlrm_torchrec.embeddings.assignments import Assignment, digests, read_assignment
from dlrm_torchrec.embeddings.compositional.operations import Add, Mult
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.table_configs import StackedEmbeddingBagConfig
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import build_tables, physical_configs
from dlrm_torchrec.schema import Table
from dlrm_torchrec.train.checkpoints.identity import first_difference

ROWS = 90
TABLES = [Table(name=name, rows=rows, dim=8, features=(name[2:],)) for name, rows in (("t_a", ROWS), ("t_b", 40))]


def assignment(classes: tuple[int, ...] = (7, 40_000), hash_classes: int = 0, seed: int = 0) -> Assignment:
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.randint(0, count, (ROWS,), generator=generator) for count in classes]
    for code, count in zip(codes, classes, strict=True):
        code[-1] = count - 1
    return Assignment(
        assigned=Assigned(codes, complementary=False), made="by chance", hash_classes=hash_classes, hash_seed=3
    )


def write(folder: Path, made: Assignment, table: str = "t_a", **changed: str) -> None:
    folder.mkdir(exist_ok=True)
    save_file(made.tensors(), folder / f"{table}.safetensors", made.metadata() | changed)


@pytest.mark.parametrize("classes", [(7,), (7, 5), (7, 40_000)])
@pytest.mark.parametrize("hash_classes", [0, 6])
def test_what_is_read_is_what_was_written(tmp_path: Path, classes: tuple[int, ...], hash_classes: int) -> None:
    made = assignment(classes, hash_classes)
    write(tmp_path, made)
    codes = load_file(tmp_path / "t_a.safetensors")["codes"]
    assert codes.dtype == (torch.int32 if max(classes) > 2**15 else torch.int16)
    found = read_assignment(str(tmp_path), "t_a", ROWS)
    assert found is not None
    ids = torch.arange(ROWS)
    assert [each.tolist() for each in found.partition.of(ids)] == [each.tolist() for each in made.partition.of(ids)]
    assert torch.equal(codes.long(), torch.stack(found.assigned.of(ids)))
    assert found.partition.classes == (*classes, *([6] if hash_classes else []))
    assert found.partition.listed_bytes == sum(ROWS * (4 if count > 2**15 else 2) for count in classes)
    assert read_assignment(str(tmp_path), "t_b", ROWS) is None


def test_tables_with_codes_are_composed_and_others_stay_plain(tmp_path: Path) -> None:
    write(tmp_path, assignment((7, 5), hash_classes=6))
    save_file({"weight": torch.ones(40, 8)}, tmp_path / "t_b.safetensors")
    for name, operation in (("auto", Add()), ("mult", Mult())):
        config = TablesConfig(kind="clusters", assignments=str(tmp_path), operation=name, threshold=1000)  # type: ignore[arg-type]  # a Literal
        composed, plain = physical_configs(build_tables(TABLES, config))
        assert isinstance(composed, StackedEmbeddingBagConfig)
        assert (composed.num_embeddings, composed.operation) == (7 + 5 + 6, operation)
        assert type(plain) is not StackedEmbeddingBagConfig
        assert plain.num_embeddings == 40


def test_other_codes_are_another_identity_and_another_folder_is_not(tmp_path: Path) -> None:
    for folder, made in (("one", assignment()), ("moved", assignment()), ("other", assignment(seed=1))):
        write(tmp_path / folder, made)
    one, moved, other = (
        {"tables": TablesConfig(kind="clusters", assignments=str(tmp_path / name)).identity}
        for name in ("one", "moved", "other")
    )
    assert json.loads(json.dumps(one)) == moved
    difference = first_difference(one, other)
    assert difference is not None
    assert difference[0] == "tables.assignments.t_a"
    assert len({assignment(hash_classes=count).digest for count in (0, 5, 6)}) == 3


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    config = TablesConfig(kind="clusters", assignments=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"assignments must be a folder with codes .*: got .* of no table, and the tab"
    ):
        build_tables(TABLES, config)
    write(tmp_path, assignment(), "t_other")
    with pytest.raises(ValueError, match=r"got .* with codes of \['t_other'\], and the tables are t_a, t_b; make it"):
        build_tables(TABLES, config)
    write(tmp_path, assignment(), "t_b")
    with pytest.raises(ValueError, match=r"codes of table 't_b' must be of its 40 ids: got \(2, 90\) in .*; assign"):
        build_tables(TABLES, config)
    write(tmp_path, assignment(), digest="0" * 16)
    with pytest.raises(
        ValueError, match=r"codes of table 't_a' must have the digest 0{16} that .* names: got .*; write"
    ):
        read_assignment(str(tmp_path), "t_a", ROWS)
    save_file({"codes": torch.zeros(1, ROWS, dtype=torch.int16)}, tmp_path / "t_a.safetensors", {"made": "by hand"})
    with pytest.raises(
        ValueError, match=r"must say what its codes are: got no classes, digest, hash_classes, hash_see"
    ):
        digests(str(tmp_path))
