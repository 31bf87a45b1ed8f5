"""Prepared files that are not what they were: found by their checksum, and named."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.prepared.parquet import ParquetStream
from dlrm_torchrec.datasets.prepared.verification import Verification
from dlrm_torchrec.datasets.summary import summarise
from dlrm_torchrec.schema import DatasetSpec
from tests.prepared import write_prepared

SHAPE: Any = None  # of synthetic rows, which these tests have none of


@dataclass
class Host:
    local_rank: int = 0
    local_size: int = 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared folder with checksums, as preparation writes them."""
    write_prepared(tmp_path / "data", {"train": [[40, 30], [50], [20]], "val": [[30]]})
    change_manifest(tmp_path / "data", add_checksums)
    return tmp_path / "data"


def change_manifest(folder: Path, change: Callable[[Path, dict[str, Any]], None]) -> None:
    data = json.loads((folder / "dataset.json").read_text())
    change(folder, data)
    (folder / "dataset.json").write_text(json.dumps(data))


def add_checksums(folder: Path, data: dict[str, Any]) -> None:
    for split in data["splits"].values():
        for file in split["files"]:
            file["sha256"] = hashlib.sha256((folder / file["path"]).read_bytes()).hexdigest()


def faults(folder: Path, ranks: int = 1) -> list[str]:
    said: list[str] = []
    files = summarise(str(folder), SHAPE).files
    checks = [Verification(files, Host(rank, ranks), said.append) for rank in range(ranks)]
    assert all(check.wait(60) for check in checks)
    assert said == []
    return [fault for check in checks if (fault := check.fault())]


@pytest.mark.parametrize("ranks", [1, 3, 9])
def test_whole_files_have_no_fault(folder: Path, ranks: int) -> None:
    assert faults(folder, ranks) == []


def test_each_of_100_flipped_bits_is_found(folder: Path) -> None:
    draw, paths = random.Random(7), sorted(folder.glob("*/*.parquet"))
    for number in range(100):
        path = draw.choice(paths)
        whole = path.read_bytes()
        broken = bytearray(whole)
        broken[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        (fault,) = faults(folder, ranks=1 + number % 3)
        assert fault.startswith(f"file {path} must have the SHA-256 of dataset.json, ")
        assert f"got {hashlib.sha256(broken).hexdigest()[:12]}" in fault
        path.write_bytes(whole)
    assert faults(folder) == []


def reorder(folder: Path) -> str:
    table = pq.read_table(folder / "train/part-1.parquet")
    pq.write_table(table.take(list(range(len(table)))[::-1]), folder / "train/part-1.parquet")
    return "train/part-1.parquet"


def complement(folder: Path) -> str:
    table = pq.read_table(folder / "train/part-2.parquet")
    labels = pc.subtract(1, table["click"]).cast("float32")
    pq.write_table(table.set_column(0, "click", labels), folder / "train/part-2.parquet")
    return "train/part-2.parquet"


def truncate(folder: Path) -> str:
    path = folder / "val/part-0.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    return "val/part-0.parquet"


def append(folder: Path) -> str:
    with (folder / "train/part-2.parquet").open("ab") as file:
        file.write(b"\0")
    return "train/part-2.parquet"


def exchange(folder: Path) -> str:
    one, two = folder / "train/part-0.parquet", folder / "train/part-1.parquet"
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    return "train/part-0.parquet"


def remove(folder: Path) -> str:
    (folder / "val/part-0.parquet").unlink()
    return "val/part-0.parquet"


@pytest.mark.parametrize("damage", [reorder, complement, truncate, append, exchange, remove])
def test_other_rows_are_found(folder: Path, damage: Callable[[Path], str]) -> None:
    name = damage(folder)
    (fault,) = faults(folder)
    assert fault.startswith(f"file {folder}/{name} must ")


def test_checksums_may_be_written_in_capitals(folder: Path) -> None:
    def shout(_: Path, data: dict[str, Any]) -> None:
        for file in data["splits"]["train"]["files"]:
            file["sha256"] = file["sha256"].upper()

    change_manifest(folder, shout)
    assert faults(folder) == []


def test_files_without_checksums_are_counted(folder: Path) -> None:
    def forget(_: Path, data: dict[str, Any]) -> None:
        for file in data["splits"]["train"]["files"][:2]:
            del file["sha256"]

    change_manifest(folder, forget)
    reorder(folder)
    said: list[str] = []
    check = Verification(summarise(str(folder), SHAPE).files, Host(), said.append)
    assert check.wait(60)
    assert check.fault() == ""
    (warning,) = said
    assert "2 of 4 data files have no sha256 in dataset.json" in warning


def digest(folder: Path) -> str:
    return summarise(str(folder), SHAPE).digest


def test_the_digest_of_a_run_knows_checksums_their_order_and_added_ids(folder: Path) -> None:
    seen = {digest(folder)}

    def expect_another(change: Callable[[Path, dict[str, Any]], None]) -> None:
        change_manifest(folder, change)
        assert digest(folder) not in seen
        seen.add(digest(folder))

    expect_another(lambda _, data: data["splits"]["train"]["files"].reverse())
    expect_another(lambda _, data: data["splits"]["val"]["files"][0].update(sha256="0" * 64))
    expect_another(lambda _, data: data["splits"].update(test=data["splits"]["val"]))
    spec = DatasetSpec.from_json(json.loads((folder / "dataset.json").read_text())["spec"])
    item = next(feature for feature in spec.to_json()["sparse"] if feature["name"] == "item")

    def make_multi_hot(_: Path, data: dict[str, Any]) -> None:
        for feature in data["spec"]["sparse"]:
            if feature["name"] == item["name"]:
                feature.update(multi_hot=True, pooling_factor=3.0)
        data["multi_hot"] = {"sizes": {"item": 3}, "seed": 1}

    expect_another(make_multi_hot)
    expect_another(lambda _, data: data["multi_hot"].update(seed=2))
    expect_another(lambda _, data: data["multi_hot"].update(distribution="pareto"))
    expect_another(lambda _, data: data["multi_hot"].update(sizes={"item": 4}))
    same = digest(folder)
    change_manifest(folder, lambda _, data: data.update(report={"read": 7}, sources=[]))
    assert digest(folder) == same


def test_a_damaged_file_is_named_where_it_is_read(folder: Path) -> None:
    path = folder / "train/part-0.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=re.escape(f"file {path} must be whole Parquet: got '")):
        ParquetStream(str(folder), "train", global_batch_size=4, shuffle=False)
    path.write_bytes(bytes(len(whole) // 2) + whole[len(whole) // 2 :])
    stream = ParquetStream(str(folder), "train", global_batch_size=4, shuffle=False)
    with pytest.raises(ValueError, match=re.escape(f"file {path} must be whole Parquet: got '")):
        list(stream.batches())


def set_rows(value: Any) -> Callable[[Path, dict[str, Any]], None]:
    def change(_: Path, data: dict[str, Any]) -> None:
        data["splits"]["val"]["files"][0]["rows"] = value
        del data["splits"]["val"]["rows"]

    return change


def set_pooling(value: Any) -> Callable[[Path, dict[str, Any]], None]:
    return lambda _, data: data["spec"]["sparse"][1].update(pooling_factor=value)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (set_rows(11.5), "rows of a file of split 'val' must be a whole number: got 11.5"),
        (set_rows("11"), "rows of a file of split 'val' must be a whole number: got '11'"),
        (set_rows(True), "rows of a file of split 'val' must be a whole number: got True"),
        (set_rows(-3), "rows of file 'val/part-0.parquet' must be at least 0: got -3"),
        (set_pooling(-1), "pooling_factor at least 0: got 1, 0 and -1.0"),
        (set_pooling(float("nan")), "must be a finite number: got nan"),
        (lambda _, data: data["splits"]["val"]["files"][0].update(path=3), "path of a file of split 'val' must be a"),
        (lambda _, data: data["splits"]["val"]["files"][0].update(sha256=3), "sha256 of a file of split 'val' must be"),
        (lambda _, data: data["splits"].update(val=[]), "manifest that this version reads: got "),
        (lambda _, data: data.update(splits=[]), "manifest that this version reads: got "),
        (lambda _, data: data.update(sources=[{"path": "x"}]), "a source must have the field 'bytes'"),
        (lambda _, data: data.update(report=7), "report must be an object: got 7"),
        (
            lambda _, data: data.update(multi_hot={"sizes": {"item": 2.5}}),
            "must be whole numbers: got {'item': 2.5} and 0",
        ),
        (lambda _, data: data.update(multi_hot={"sizes": 3}), "must be whole numbers: got 3 and 0"),
        (lambda _, data: data.update(statistics={"item": None}), "manifest that this version reads: got "),
    ],
)
def test_a_wrong_manifest_is_explained(folder: Path, change: Callable[[Path, dict[str, Any]], None], got: str) -> None:
    change_manifest(folder, change)
    with pytest.raises(ValueError, match=re.escape(got)):
        Manifest.load(str(folder))


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"[]", b"null", b"\xff\xfe{", b"\0\0", b""])
def test_a_manifest_that_is_no_manifest_is_explained(folder: Path, content: bytes) -> None:
    (folder / "dataset.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"dataset\.json must be a manifest that this version reads: got "):
        Manifest.load(str(folder))
