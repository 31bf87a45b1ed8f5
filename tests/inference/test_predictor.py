"""Raw values of requests, held against what preparation makes of the same values, and against garbage."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.inference.encoder import Inputs
from dlrm_torchrec.inference.predictor import AnyInputs, Predictor
from dlrm_torchrec.preparation.prepare import Source, Window, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.raw_parquet import ParquetReader
from dlrm_torchrec.preparation.splits import Whole
from dlrm_torchrec.schema import MANAGED_IDS
from tests.data import load_script
from tests.data.test_census import CENSUS, ROOT, needs_census
from tests.inference.packages import SPEC, pack, raw_rows

Values = Any  # of one feature: a list, or an array of NumPy or Arrow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """A prepared folder, and the raw rows of its split val."""
    folder = tmp_path_factory.mktemp("log")
    train, val = (raw_rows(np.random.default_rng(seed), count) for seed, count in ((0, 700), (1, 400)))
    reader = ParquetReader(columns=Columns(spec=SPEC))
    sources = []
    for name, rows in (("train", train), ("val", val)):
        pq.write_table(rows, folder / f"{name}.parquet", row_group_size=200)
        sources.append(Source(path=str(folder / f"{name}.parquet"), reader=reader, assignment=Whole(name)))
    manifest = prepare(SPEC, sources, str(folder / "prepared"), workers=1)
    assert manifest.report["rows_quarantined"] == 0
    return folder / "prepared", val


@pytest.fixture(scope="module")
def predictor(prepared: tuple[Path, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(pack(prepared[0], tmp_path_factory.mktemp("package") / "log"))


def check_encoded(folder: Path, inputs: AnyInputs) -> None:
    """All rows of split val of a prepared folder are what was encoded."""
    assert isinstance(inputs, Inputs)
    manifest = Manifest.load(str(folder))
    rows = pa.concat_tables([pq.read_table(folder / file.path) for file in manifest.splits["val"].files])
    assert len(inputs) == len(rows)
    for i, dense in enumerate(manifest.spec.dense):
        bits = rows[dense.name].to_numpy().view(np.int32)  # which tell -0.0 from 0.0
        np.testing.assert_array_equal(inputs.dense[:, i].view(np.int32), bits, err_msg=dense.name)
    for i, feature in enumerate(manifest.spec.sparse):
        column = rows[feature.name].combine_chunks()
        if feature.weights:
            weights = rows[feature.weights_name].combine_chunks().flatten().to_numpy()
            np.testing.assert_array_equal(inputs.weights[i], weights, strict=True)
        lengths = column.value_lengths() if feature.multi_hot else pa.array(np.ones(len(rows)))
        ids = (column.flatten() if feature.multi_hot else column).to_numpy()
        np.testing.assert_array_equal(inputs.ids[i], ids, err_msg=feature.name)
        np.testing.assert_array_equal(inputs.lengths[i], lengths.to_numpy(), err_msg=feature.name)
        assert inputs.unseen[i] == (np.count_nonzero(ids == 1) if feature.encoding == "vocab" else 0)
    assert inputs.dense.dtype == np.float32
    assert {ids.dtype for ids in inputs.ids} == {np.dtype(np.int64)}
    assert inputs.lengths.dtype == np.int32


def as_numpy(column: pa.ChunkedArray) -> Values:
    """As pandas holds a column, but where it would make floats of integers."""
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not pa.types.is_integer(column.type.value_type if lists else column.type):
        return column.combine_chunks().to_numpy(zero_copy_only=False)
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values


FORMS: dict[str, Callable[[pa.ChunkedArray], Values]] = {
    "list": lambda column: column.to_pylist(),
    "numpy": as_numpy,
    "arrow": lambda column: column.combine_chunks(),
    "chunked": lambda column: column,
    "slice": lambda column: pa.concat_arrays([column.chunk(0)[:3], *column.chunks])[3:],
}


@pytest.mark.parametrize("form", FORMS)
def test_raw_values_become_what_preparation_makes_of_them(
    prepared: tuple[Path, pa.Table], predictor: Predictor, form: str
) -> None:
    folder, rows = prepared
    inputs = predictor.encode({name: FORMS[form](rows[name]) for name in rows.column_names})
    check_encoded(folder, inputs)
    assert (inputs.unseen > 0).sum() >= 5


def test_vocabularies_with_free_ids_serve_what_preparation_makes_of_them(tmp_path: Path) -> None:
    reader = ParquetReader(columns=Columns(spec=SPEC))
    first, second = (raw_rows(np.random.default_rng(seed), count) for seed, count in ((5, 300), (6, 60)))
    for name, rows in (("first", first), ("second", second)):
        pq.write_table(rows, tmp_path / f"{name}.parquet")

    def source(name: str, split: str) -> Source:
        return Source(path=str(tmp_path / f"{name}.parquet"), reader=reader, assignment=Whole(split))

    prepare(SPEC, [source("first", "train")], str(tmp_path / "1"), workers=1, window=Window(headroom=0.1, max_age=1))
    sources = [source("second", "train"), source("first", "val")]
    prepare(SPEC, sources, str(tmp_path / "2"), workers=1, window=Window(after=str(tmp_path / "1")))
    valid = [pq.read_table(path)["value"].is_valid().to_pylist() for path in (tmp_path / "2/vocab").iterdir()]
    assert sum(any(each[each.index(False) :]) for each in valid) >= 3  # ids within are free, not only those at the end
    predictor = Predictor.load(pack(tmp_path / "2", tmp_path / "package"))
    check_encoded(tmp_path / "2", predictor.encode({name: first[name] for name in first.column_names}))


@needs_census
def test_rows_of_census_become_what_preparation_makes_of_them(tmp_path: Path) -> None:
    script = load_script(ROOT / "data/census/prepare.py")
    (tmp_path / "raw").mkdir()
    for name in ("train", "test"):
        pq.write_table(pq.read_table(CENSUS / f"{name}.parquet")[:3000], tmp_path / f"raw/{name}.parquet")
    script.main(script.Config(input=str(tmp_path / "raw"), output=str(tmp_path / "prepared")))
    raw = pq.read_table(tmp_path / "raw/test.parquet").to_pydict()
    columns = {name: raw[name] for name in (*script.SPARSE, *script.DENSE)}
    predictor = Predictor.load(pack(tmp_path / "prepared", tmp_path / "package"))
    check_encoded(tmp_path / "prepared", predictor.encode(columns))


def test_joined_requests_are_the_rows_of_all(prepared: tuple[Path, pa.Table], predictor: Predictor) -> None:
    rows = prepared[1]
    parts = [rows[:1], rows[1:1], rows[1:200], rows[200:]]
    requests = [predictor.encode({name: part[name] for name in predictor.columns}) for part in parts]
    whole, joined = predictor.encode({name: rows[name] for name in predictor.columns}), Inputs.joined(requests)
    assert isinstance(whole, Inputs)
    for got, expected in zip((joined.dense, *joined.ids), (whole.dense, *whole.ids), strict=True):
        np.testing.assert_array_equal(got, expected, strict=True)
    np.testing.assert_array_equal(joined.lengths, whole.lengths, strict=True)
    np.testing.assert_array_equal(joined.unseen, whole.unseen, strict=True)


def test_threads_get_the_probabilities_of_their_own_rows(prepared: tuple[Path, pa.Table], predictor: Predictor) -> None:
    parts = [prepared[1][start : start + 20] for start in range(0, 400, 20)]
    columns = [{name: part[name].to_pylist() for name in predictor.columns} for part in parts]
    expected = [predictor(part) for part in columns]
    assert len({tuple(prediction.probabilities) for prediction in expected}) == len(parts)
    with ThreadPoolExecutor(4) as pool:
        for got, prediction in zip(pool.map(predictor, columns), expected, strict=True):
            np.testing.assert_array_equal(got.probabilities, prediction.probabilities, strict=True)
            assert got.unseen == prediction.unseen


def row(**values: object) -> dict[str, Values]:
    """One row without values, except for those given."""
    return {name: [None] for name in SPEC.raw_features} | values


def test_what_is_not_known_is_counted(predictor: Predictor) -> None:
    prediction = predictor(row(slot=[4], place=[-1], city=["nowhere"], tags=[["no tag", "no other", None]]))
    assert prediction.unseen == {"slot": 1, "place": 1, "city": 1, "tags": 2}
    inputs = predictor.encode(row(slot=[4], place=["-5"], city=["nowhere"], user=["text"], session=[3.0]))
    assert [ids.tolist() for ids in inputs.ids[:7]] == [[0], [0], [1], [1], [0], [0], [1]]
    outside = replace(inputs, ids=(np.array([9]), *inputs.ids[1:]), unseen=np.zeros_like(inputs.unseen))
    assert predictor.run(outside).unseen == {"slot": 1}  # which the model tells


SAME: list[list[Any]] = [
    [5, 5.0, "5", " 5", "5.0", "5. ", np.int16(5), np.float32(5), Decimal("5.0"), b"5"],
    [1, True, "true", " TRUE", "1", 1.0, np.True_],
    [0, False, "False", "-0", -0.0, "0.0"],
    [None, float("nan"), "", "  ", "NA", " null ", "\\N", np.float64("nan")],
    ["A3", " A3 ", "A3\t", b"A3"],
    [-(2**63), str(-(2**63)), f" {-(2**63)}.0"],
    [2**63, str(2**63), np.uint64(2**63)],
    [10**25, str(10**25)],
]


@pytest.mark.parametrize("values", SAME, ids=lambda values: repr(values[0]))
def test_a_value_has_one_id_whatever_its_type(predictor: Predictor, values: list[Any]) -> None:
    random = np.random.default_rng(0)
    other: list[Any] = ["B", 7, 2.0, None, "7 ", True]
    mixed = [*values, *other]
    order = random.permutation(len(mixed))
    places = [np.flatnonzero(order == number)[0] for number in range(len(values))]
    for column, count in (("device", 1), ("account", 1), ("code", 3)):
        alone = [predictor.encode(row(**{column: [value]})) for value in values]
        numbers = [number for number, each in enumerate(SPEC.sparse) if each.raw == column]
        assert len(numbers) == count
        columns = {name: [None] * len(mixed) for name in predictor.columns}
        together = predictor.encode(columns | {column: [mixed[place] for place in order]})
        typed = predictor.encode({name: [None] * len(values) for name in predictor.columns} | {column: values[:]})
        for number in numbers:
            ids = {one.ids[number][0] for one in alone}
            assert len(ids) == 1
            assert {*together.ids[number][places]} == {*typed.ids[number]} == ids
            assert (ids == {0}) == (values[0] is None)


def test_values_that_differ_have_ids_that_differ(predictor: Predictor) -> None:
    values = [5, "05", "5e0", "five", "A3", "a3", "5,0", -5, None]
    inputs = predictor.encode({name: [None] * len(values) for name in predictor.columns} | {"account": values})
    assert len(set(inputs.ids[8].tolist())) == len(values)


def test_no_rows_have_no_probabilities(predictor: Predictor) -> None:
    prediction = predictor({name: [] for name in predictor.columns})
    assert prediction.probabilities.shape == (0,)
    assert prediction.unseen == {}


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**62, 2**65)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=5)
    | st.sampled_from(["a", "Kraków", "12", "-1e3", 5, 2.0]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=2),
    max_leaves=6,
)


@given(garbage=st.dictionaries(st.sampled_from(SPEC.raw_features), JSON_VALUES, max_size=3))
@settings(max_examples=100, deadline=None)
def test_any_column_is_encoded_or_refused(predictor: Predictor, garbage: dict[str, object]) -> None:
    check_encoded_or_refused(predictor, row(**garbage))


@given(st.sampled_from(SPEC.raw_features), st.lists(JSON_VALUES, max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_values_are_encoded_or_refused(predictor: Predictor, name: str, values: list[object]) -> None:
    columns = {other: [None] * len(values) for other in predictor.columns} | {name: values}
    check_encoded_or_refused(predictor, columns)


SENTENCE = re.compile(r"[^\n]{1,100} must [^\n]{1,100}: got [^\n]{1,600}; [^\n]{1,100}")


def check_encoded_or_refused(predictor: Predictor, columns: dict[str, Values]) -> None:
    inputs, problem = None, None
    try:
        inputs = predictor.encode(columns)
    except ValueError as error:
        problem = error
    if inputs is None:
        assert type(problem) is ValueError
        assert SENTENCE.fullmatch(str(problem))
        return
    assert isinstance(inputs, Inputs)
    assert np.isfinite(inputs.dense).all()
    assert inputs.lengths.sum(axis=1).tolist() == [len(ids) for ids in inputs.ids]
    for ids, feature in zip(inputs.ids, predictor.spec["sparse"], strict=True):
        last = MANAGED_IDS if feature["encoding"] == "managed" else feature["rows"]
        assert ((ids >= 0) & (ids < last)).all()


REFUSED: list[tuple[dict[str, Values], str]] = [
    ({"price": ["cheap"]}, r"column 'price' must hold numbers: got 'cheap'; correct it"),
    ({"scored": [["a", "b"]], "scores": [[5, "x"]]}, "column 'scores' must hold numbers: got 'x'; correct it"),
    ({"price": [1e39]}, "'price' must hold finite float32 numbers: got 1e[+]39;"),
    ({"price": [float("inf")]}, "'price' must hold finite float32 numbers: got inf;"),
    ({"price": [10**400]}, "'price' must hold finite float32 numbers: got inf;"),
    ({"price": ["infinity"]}, "'price' must hold numbers: got 'infinity';"),
    ({"price": [[1.0]]}, r"'price' must hold single numbers or texts: got list<item: double>;"),
    ({"price": pa.array([datetime(2026, 1, 1)])}, r"'price' must hold numbers: got .*timestamp\[us\]"),
    ({"price": np.array([1j])}, "'price' must hold single numbers or texts: got .*1j"),
    ({"price": 5.0}, "column 'price' must hold one value per row: got 5.0;"),
    ({"price": "5"}, "column 'price' must hold one value per row: got '5';"),
    ({"price": [1, 2]}, "columns must have one value per row: got 2 of 'price', 1 of 'scores'; send null"),
    ({"height": ["1,5"]}, "'height' must hold numbers: got '1,5';"),
    ({"when": ["soon"]}, "'when' must hold times: got 'soon';"),
    ({"when": [True]}, "'when' must hold times: got bool;"),
    ({"slot": [1.5]}, "'slot' must hold whole numbers or texts: got 1.5;"),
    ({"slot": [2.0**53]}, "'slot' must hold whole numbers or texts: got 9007199254740992.0;"),
    ({"slot": ["one"]}, "'slot' must hold whole numbers: got 'one';"),
    ({"slot": [2**64]}, "'slot' must hold whole numbers: got '18446744073709551616';"),
    ({"city": ["\ud800"]}, r"'city' must hold single numbers or texts: got '\\ud800';"),
    ({"city": [{"name": "Paris"}]}, "'city' must hold single numbers or texts: got struct<name: string>;"),
    ({"city": [{"\n" * 99: None}]}, r"'city' must hold single numbers or texts: got struct<\\n\\n"),
    ({"device": [5.5]}, "'device' must hold whole numbers or texts: got 5.5;"),
    ({"words": [[2**60 + 1, 0.5]]}, "'words' must hold whole numbers or texts: got 0.5;"),
    ({"visitor": [0.5]}, "'visitor' must hold whole numbers or texts: got 0.5;"),
    ({"device": [[]]}, r"'device' must hold single numbers or texts: got list<item: null>;"),
    ({"tags": ["a"]}, "'tags' must hold a list of values per row: got 'a';"),
    ({"tags": pa.array(["a"])}, "'tags' must hold a list of values per row: got string"),
    ({"tags": [["a", {}]]}, "'tags' must hold single numbers or texts: got struct<>;"),
    ({"scored": [["a", "b"]]}, "column 'scores' must have a weight for each value of 'scored': got 0 for 2 in row 0;"),
    (
        {"scored": [["a"]], "scores": [[None]]},
        "'scores' must hold finite float32 numbers and none that is missing: got",
    ),
    ({"scored": [["a"]], "scores": [["x"]]}, "'scores' must hold numbers: got 'x';"),
    ({"colour": ["red"]}, r"columns must be the raw ones of 'log': got unknown \['colour'\]; send all"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_malformed_values_are_refused(predictor: Predictor, values: dict[str, Values], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.encode(row(**values))


def test_columns_are_those_of_the_features(predictor: Predictor) -> None:
    columns = row(clicked="anything", bought=5, importance=None)
    predictor.encode(columns)
    del columns["slot"]
    with pytest.raises(ValueError, match=r"columns must be the raw ones of 'log': got no \['slot'\]; send all columns"):
        predictor.encode(columns)
    with pytest.raises(ValueError, match=r"'log': got no \['slot'\] and unknown \['colour'\]; send all columns"):
        predictor.encode(columns | {"colour": ["red"]})
    with pytest.raises(ValueError, match=r"columns must be an object: got \['slot'\]; send the values of each column"):
        predictor.encode(["slot"])  # type: ignore[arg-type]  # refused


def test_the_value_at_fault_is_named(predictor: Predictor) -> None:
    def columns(values: list[object]) -> dict[str, Values]:
        return {name: [None] * len(values) for name in predictor.columns} | {"account": values}

    for place in (0, 1, 77, 299):
        values: list[object] = list(range(300))
        values[place] = place + 0.5
        with pytest.raises(ValueError, match=rf"'account' must hold .*: got {place}\.5;"):
            predictor.encode(columns(values))
        values[place] = "\ud800"
        with pytest.raises(ValueError, match=r"'account' must hold .*: got '\\ud800';"):
            predictor.encode(columns(values))
