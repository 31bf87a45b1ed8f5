from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.manifest import Manifest
from tests.data import load_script

ROOT = Path(__file__).parents[2]
CENSUS = ROOT.parent / "shared/data/census_income_kdd"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(ROOT / "data/census/prepare.py")


@pytest.mark.skipif(not CENSUS.exists(), reason=f"the census files are not in {CENSUS.name}/ beside the repository")
@pytest.mark.parametrize("val_share", [0.0, 0.1])
def test_all_rows_are_prepared(tmp_path: Path, script: ModuleType, val_share: float) -> None:
    script.main(script.Config(input=str(CENSUS), output=str(tmp_path), val_share=val_share))
    manifest = Manifest.load(str(tmp_path))
    rows = {name: split.rows for name, split in manifest.splits.items()}
    assert rows["train"] + rows.get("val", 0) == 159_618
    assert rows["test"] == 39_905
    assert rows.get("val", 0) == pytest.approx(val_share * 159_618, rel=0.02)
    assert manifest.report["rows_quarantined"] == 0
    assert (len(manifest.spec.dense), len(manifest.spec.sparse)) == (7, 33)
    raw = pq.read_table(CENSUS / "test.parquet")
    got = pq.read_table(tmp_path / manifest.splits["test"].files[0].path)
    assert got["income_50k"].to_pylist() == [float(text == "' 50000+.'") for text in raw["income_50k"].to_pylist()]
    for name in script.SPARSE:
        values = pq.read_table(tmp_path / "vocab" / f"{name}.parquet")["value"].to_pylist()
        number = {value: i for i, value in enumerate(values, start=2)}
        assert got[name].to_pylist() == [
            0 if value is None else number.get(value, 1) for value in raw[name].to_pylist()
        ]


def test_unknown_labels_are_quarantined(tmp_path: Path, script: ModuleType) -> None:
    count = 400
    columns = dict.fromkeys(script.DENSE, [1.0] * count) | dict.fromkeys(script.SPARSE, ["' x'"] * count)
    labels = [script.POSITIVE, script.NEGATIVE] * (count // 2)
    for name, odd in (("train", "50000"), ("test", None)):
        table = pa.table(columns | {"income_50k": [odd, *labels[1:]]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    script.main(script.Config(input=str(tmp_path), output=str(tmp_path / "out")))
    manifest = Manifest.load(str(tmp_path / "out"))
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": count - 1, "test": count - 1}
    assert manifest.report["reasons"] == {"income_50k is not a known label": 2}
