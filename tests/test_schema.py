"""Specs that people write: every mistake is named, and any column name becomes a safe one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dlrm_torchrec.inference import lookups
from dlrm_torchrec.schema import (
    MANAGED_IDS,
    DatasetSpec,
    DenseFeature,
    Label,
    SparseFeature,
    safe_name,
    vocabulary_path,
)

GOOD: dict[str, Any] = {
    "name": "log",
    "label": "clicked",
    "dense": [{"name": "price"}],
    "sparse": [{"name": "city", "rows": 0, "encoding": "vocab"}],
}


def changed(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(GOOD))
    *parents, last = place
    holder = data
    for parent in parents:
        holder = holder[parent]
    holder[last] = value
    return data


WRONG = [
    (
        ("sparse", 0, "encoding"),
        "ID",
        r"encoding of entry 0 of sparse of the dataset spec 'city' must be one of \['id', 'vocab'",
    ),
    (("sparse", 0, "encoding"), "vocabulary", "got 'vocabulary'; correct it"),
    (
        ("sparse", 0, "rows"),
        "5",
        "rows of entry 0 of sparse of the dataset spec 'city' must be a whole number: got '5'",
    ),
    (("sparse", 0, "rows"), 1e3, r"must be a whole number: got 1000\.0"),
    (("sparse", 0, "rows"), None, "must be a whole number: got None"),
    (("sparse", 0, "rows"), True, "must be a whole number: got True"),
    (("sparse", 0, "rows"), -1, r"rows of vocab feature 'city' must be at least 0 .*: got -1; raise it"),
    (("sparse", 0, "multi_hot"), "false", "must be true or false: got 'false'"),
    (("sparse", 0, "multi_hot"), 0, "must be true or false: got 0"),
    (("sparse", 0, "min_count"), 0, "min_count of feature 'city' must be at least 1"),
    (
        ("sparse", 0, "vocab"),
        True,
        r"fields of entry 0 of sparse of the dataset spec 'city' must be among \['name', .*: got 'vocab'",
    ),
    (("sparse", 0, "weights"), "w", "feature 'city' must be multi_hot to have weights"),
    (("sparse", 0, "boundaries"), [2, 1], "boundaries of feature 'city' must ascend"),
    (("sparse", 0), {"rows": 3}, r"must have the field 'name': got \['rows'\]; add it"),
    (("sparse", 0), "city", r"must be an object with the fields \['name', .*: got 'city'; write one"),
    (("sparse",), {}, "sparse of the dataset spec must be a list: got {}; correct it"),
    (("sparse",), [], "spec 'log' must have a sparse feature: got none"),
    (("dense", 0, "default"), "0", "must be a finite number or null: got '0'"),
    (("dense", 0, "default"), float("nan"), "must be a finite number or null: got nan"),
    (("dense", 0, "default"), None, "default of feature 'price' must be a number unless it is standardised: got null"),
    (
        ("dense", 0, "log1p"),
        "no",
        "log1p of entry 0 of dense of the dataset spec 'price' must be true or false: got 'no'",
    ),
    (("dense", 0, "name"), "city", r"must have distinct names of at least a character: got \['city'\] twice"),
    (("dense", 0, "name"), "", "must have distinct names of at least a character"),
    (("label",), 3, "label of the dataset spec must be a text: got 3"),
    (("positive_label",), 1, "positive_label of the dataset spec must be a text or null: got 1"),
    (("positive_label",), " NA", "positive_label of 'clicked' must not mean a missing value"),
    (("decimal",), ";", r"decimal of the dataset spec must be one of \['\.', ','\]: got ';'"),
    (("thousands",), ".", r"decimal and thousands must differ: got '\.' for both"),
    (("target",), "rank", r"target of the dataset spec must be one of \['binary', 'number'\]"),
    (("missing",), "NA", "missing of the dataset spec must be a list: got 'NA'"),
    (("lable",), "x", "fields of the dataset spec must be among .*: got 'lable'"),
]


@pytest.mark.parametrize(("place", "value", "message"), WRONG)
def test_mistakes_are_named_with_what_is_allowed(place: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetSpec.from_json(changed(place, value))


def test_what_is_written_is_read_again() -> None:
    spec = DatasetSpec(
        name="log",
        label="clicked",
        dense=(DenseFeature(name="x", default=None, standardise=True, mean=1.5, deviation=2.0),),
        sparse=(
            SparseFeature(name="a", rows=5, table="t"),
            SparseFeature(name="b", rows=5, table="t", multi_hot=True, weights="w"),
            SparseFeature(name="c", rows=4, encoding="bucket", boundaries=(1.0, 2.5), dim=8),
        ),
        more_labels=(Label(name="bought", positive_label="yes"),),
        weight="importance",
        missing=("", "?"),
    )
    assert DatasetSpec.read(json.dumps(spec.to_json()).encode()) == spec
    assert DatasetSpec.read(b"\xef\xbb\xbf" + json.dumps(spec.to_json()).encode()) == spec  # as Windows writes it
    assert [(t.name, t.rows, t.dim, t.features) for t in spec.tables(16)] == [
        ("t_t", 5, 16, ("a", "b")),
        ("t_c", 4, 8, ("c",)),
    ]
    assert spec.prepared_names == ["clicked", "bought", "importance", "x", "a", "b", "c", "b weights"]
    assert spec.raw_features == ["x", "a", "b", "c", "w"]


def test_files_that_are_no_spec() -> None:
    for data in (b"{", b"\xff\xfe", b""):
        with pytest.raises(ValueError, match=r"a spec must be JSON in UTF-8: got .*; correct it"):
            DatasetSpec.read(data)
    with pytest.raises(ValueError, match="the dataset spec must be an object"):
        DatasetSpec.read(b"[]")


def test_features_that_share_a_table_must_agree() -> None:
    features = SparseFeature(name="a", rows=5, table="t"), SparseFeature(name="b", rows=6, table="t")
    with pytest.raises(ValueError, match=r"features of table 't' must have the same rows, .*: got \['a', 'b'\]"):
        DatasetSpec(name="x", label="y", dense=(), sparse=features)


NAMES = [
    "user.city",
    "..ip",
    "../../evil",
    "/etc/passwd",
    "a b",
    "größe",
    "日本",
    "a%2Eb",
    "a~b",
    "x" * 300,
    "CON",
    "a\nb",
    "-",
]


def test_any_name_becomes_a_safe_one() -> None:
    safe = [safe_name(name) for name in NAMES]
    assert len(set(safe)) == len(NAMES)
    for each in safe:
        assert each.isascii()
        assert not set(each) & set('./\\ \n~:*?"<>|')
        assert 0 < len(each) < 200
    assert safe_name("plain_Name-7") == "plain_Name-7"
    assert safe_name("x" * 299 + "y") != safe_name("x" * 300)
    feature = SparseFeature(name="../../evil", rows=0, encoding="vocab")
    assert vocabulary_path(feature) == "vocab/%2E%2E%2F%2E%2E%2Fevil.parquet"


def test_a_managed_feature_has_more_ids_than_rows() -> None:
    managed = SparseFeature(name="user", rows=100, encoding="managed")
    assert managed.ids == MANAGED_IDS == lookups.MANAGED_IDS
    assert SparseFeature(name="shop", rows=100).ids == 100
    (table,) = DatasetSpec(name="s", label="y", dense=(), sparse=(managed,)).tables(dim=4)
    assert (table.rows, table.managed) == (100, True)
    with pytest.raises(
        ValueError, match=r"rows of managed feature 'user' must be at least 2 \(ids without a row share"
    ):
        SparseFeature(name="user", rows=1, encoding="managed")
