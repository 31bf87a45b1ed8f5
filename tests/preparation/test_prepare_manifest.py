from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest, SourceFile, Split
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

SPEC = DatasetSpec(
    name="shop",
    label="bought",
    dense=(DenseFeature(name="price", default=1.5, log1p=True),),
    sparse=(SparseFeature(name="item", rows=10), SparseFeature(name="seen", rows=9, encoding="hash", multi_hot=True)),
)


def test_saved_manifest_loads_equal(tmp_path: Path) -> None:
    manifest = Manifest(
        spec=SPEC,
        splits={
            "train": Split(files=(DataFile(path="train/a.parquet", rows=3, sha256="ab"), DataFile(path="b", rows=4))),
            "val": Split(files=()),
        },
        sources=(SourceFile(path="raw.csv", bytes=12, sha256="cd"),),
        report={"rows_in": 7},
    )
    manifest.save(str(tmp_path))
    manifest.save(str(tmp_path))  # replaces
    assert Manifest.load(str(tmp_path)) == manifest
    assert Manifest.load(f"{tmp_path}/") == manifest
    assert manifest.splits["train"].rows == 7
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]
    assert json.loads((tmp_path / "dataset.json").read_text())["splits"]["train"]["rows"] == 7


def test_manifest_written_by_hand_needs_only_spec_and_files(tmp_path: Path) -> None:
    data = {
        "format": 2,
        "spec": {"name": "x", "label": "y", "dense": [], "sparse": [{"name": "item", "rows": 5}]},
        "splits": {"train": {"files": [{"path": "mine.parquet", "rows": 2}]}},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(data))
    manifest = Manifest.load(str(tmp_path))
    assert manifest.splits["train"] == Split(files=(DataFile(path="mine.parquet", rows=2, sha256=None),))
    assert manifest.sources == ()


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold a dataset\.json: got none; prepare it first"):
        Manifest.load(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "format must be 2: got 1"),
        (
            {"splits": {"train": {"rows": 3, "files": [{"path": "a", "rows": 2}]}}},
            "got 3 rows in split 'train', but 2 in its files",
        ),
        ({"splits": {"train": {}}}, "no field 'files'"),
        ({"spec": {"name": "x"}}, "the dataset spec must have the field .label."),
    ],
)
def test_unfit_manifest_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    data = {"format": 2, "spec": SPEC.to_json(), "splits": {}} | change
    (tmp_path / "dataset.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        Manifest.load(str(tmp_path))


def test_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"format": 1')
    with pytest.raises(ValueError, match="must be a manifest that this version reads"):
        Manifest.load(str(tmp_path))
