"""Changes between two vocabularies, against plain dictionaries."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.windows.vocabulary_changes import compared, vocabulary_changes
from dlrm_torchrec.schema import DatasetSpec, SparseFeature, vocabulary_path

Value = int | str | None


def drawn(draw: random.Random, rows: int, kind: str) -> list[Value]:
    """A vocabulary with holes."""
    values: list[Value] = [f"{i}" if kind == "texts" else i for i in draw.sample(range(40), rows)]
    return [None if draw.random() < 0.2 else value for value in values]


@pytest.mark.parametrize("seed", range(40))
def test_changes_equal_dictionaries(seed: int) -> None:
    draw = random.Random(seed)
    kinds = [draw.choice(["numbers", "texts"]) for _ in range(2)]
    before, after = (drawn(draw, draw.randrange(30), kind) for kind in kinds)
    if draw.random() < 0.5:  # of one chain: most values stay
        kinds[1] = kinds[0]
        after = [value if draw.random() < 0.7 else None for value in before] + drawn(draw, 0, kinds[0])
    types = {"numbers": pa.int64(), "texts": pa.string()}
    found = compared(*(pa.array(each, types[kind]) for each, kind in zip((before, after), kinds, strict=True)))
    old = {i: str(value) for i, value in enumerate(before, 2) if value is not None}
    new = {i: str(value) for i, value in enumerate(after, 2) if value is not None}
    place = {value: i for i, value in old.items()}
    assert found.added.tolist() == sorted(new.keys() - old.keys())
    assert found.removed.tolist() == sorted(old.keys() - new.keys())
    assert found.replaced.tolist() == [i for i in sorted(new) if i in old and old[i] != new[i]]
    assert found.origins.tolist() == [0, 1, *(place.get(new.get(i, ""), -1) for i in range(2, 2 + len(after)))]
    assert found.fresh.tolist() == [i for i in sorted(new) if new[i] not in place]
    assert found.stable == all(place.get(value, i) == i for i, value in new.items())
    assert (found.rows_before, found.rows) == (2 + len(before), 2 + len(after))


def test_folders_of_other_features_are_refused(tmp_path: Path) -> None:
    features = tuple(SparseFeature(name=name, rows=4, encoding="vocab", table="places") for name in ("home", "work"))
    spec = DatasetSpec(name="s", label="y", dense=(), sparse=(*features, SparseFeature(name="x", rows=9)))
    for name, values in (("a", ["Rome", "Oslo"]), ("b", ["Rome", "Lima"])):
        (tmp_path / name / "vocab").mkdir(parents=True)
        pq.write_table(pa.table({"value": values}), tmp_path / name / vocabulary_path(features[0]))
        Manifest(spec=spec, splits={}).save(str(tmp_path / name))
    found = vocabulary_changes(str(tmp_path / "a"), str(tmp_path / "b"))
    assert found.keys() == {"home", "work"}
    np.testing.assert_array_equal(found["work"].replaced, [3])
    np.testing.assert_array_equal(found["work"].fresh, [3])
    Manifest(spec=replace(spec, sparse=features), splits={}).save(str(tmp_path / "b"))
    with pytest.raises(ValueError, match=r"features of .*/b must be those of .*/a: got other \['x'\]; prepare both"):
        vocabulary_changes(str(tmp_path / "a"), str(tmp_path / "b"))
