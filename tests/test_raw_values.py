"""One value, one meaning: canonical forms of values of every type, against plain Python."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dlrm_torchrec import raw_values
from dlrm_torchrec.raw_values import TextForm, UnfitTypeError, vocabulary_digest
from dlrm_torchrec.schema import MISSING_MARKERS

FORM = TextForm(missing=MISSING_MARKERS, decimal=".", thousands="")
MALFORMED = object()


def canonical(values: Any) -> list[Any]:
    """The categories of an array as integers and texts, None for missing."""
    found, bad = raw_values.categories(values, FORM)
    numbers, texts = raw_values.kinds(found)
    pairs = zip(bad, numbers.to_pylist(), texts.to_pylist(), strict=True)
    return [MALFORMED if wrong else number if number is not None else text for wrong, number, text in pairs]


ONE_MEANING: list[tuple[Any, list[Any]]] = [
    (
        1,
        [
            pa.array([1], pa.int8()),
            pa.array([1], pa.uint64()),
            pa.array([1.0]),
            pa.array([1.0], pa.float16()),
            pa.array([True]),
            pa.array([decimal.Decimal("1.00")]),
            *(pa.array([text]) for text in ("1", " 1", "1 ", "\t1\n", "1.0", "1.", "1.000", "True", "TRUE", " true")),
            pa.array(["1"]).dictionary_encode(),
            pa.array(["1"], pa.large_string()),
            pa.array(["1"], pa.string_view()),
            pa.array([b"1"]),
            pa.array([b"1"], pa.binary(1)),
        ],
    ),
    (
        0,
        [
            pa.array([0]),
            pa.array([-0.0]),
            pa.array([False]),
            *(pa.array([text]) for text in ("0", "-0", "0.0", "false")),
        ],
    ),
    (-5, [pa.array([-5]), pa.array([-5.0]), pa.array(["-5"]), pa.array([" -5.0"])]),
    (2**63 - 1, [pa.array([2**63 - 1]), pa.array([str(2**63 - 1)]), pa.array([2**63 - 1], pa.uint64())]),
    (-(2**63), [pa.array([-(2**63)]), pa.array([str(-(2**63))])]),
    (str(2**63), [pa.array([2**63], pa.uint64()), pa.array([str(2**63)])]),
    (
        None,
        [
            pa.array([None], pa.int64()),
            pa.nulls(1),
            pa.array([float("nan")]),
            *(pa.array([text]) for text in ("", "  ", "NA", " NA ", "N/A", "NaN", "nan", "null", "NULL", "\\N")),
            pa.array([None], pa.string()).dictionary_encode(),
        ],
    ),
    (
        "2024-01-31 10:00:00",
        [
            *(pa.array([datetime.datetime(2024, 1, 31, 10)], pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
            pa.array(["2024-01-31 10:00:00"]),
        ],
    ),
    ("2024-01-31 10:00:00.25", [pa.array([datetime.datetime(2024, 1, 31, 10, 0, 0, 250_000)], pa.timestamp("ns"))]),
    ("2024-01-31", [pa.array([datetime.date(2024, 1, 31)]), pa.array(["2024-01-31"])]),
    *(
        (text, [pa.array([text])])
        for text in ("01", "1e3", "2.50", "+1", "a", "ä b", "1-2", "--1", "Na", "none", "1 0")
    ),
    (MALFORMED, [pa.array([2.5]), pa.array([2.0**53]), pa.array([decimal.Decimal("2.5")]), pa.array([float("inf")])]),
]


@pytest.mark.parametrize(("meaning", "forms"), ONE_MEANING)
def test_one_meaning_whatever_the_type(meaning: Any, forms: list[Any]) -> None:
    for form in forms:
        assert canonical(form) == [meaning], form.type
        assert canonical(pa.concat_arrays([form, form, form]).slice(1)) == [meaning, meaning]


def test_columns_of_many_texts_equal_their_values_one_by_one() -> None:
    random = np.random.default_rng(0)
    pieces = [
        "",
        " ",
        "0",
        "1",
        "7",
        "12",
        "-3",
        ".0",
        ".",
        "x",
        "NA",
        "true",
        "9223372036854775807",
        "9" * 19,
        "9" * 20,
    ]
    texts = ["".join(random.choice(pieces, random.integers(1, 4))) for _ in range(3000)]

    def alone(text: str) -> Any:
        text = text.strip()
        if text in MISSING_MARKERS:
            return None
        text = {"true": "1", "false": "0"}.get(text.lower(), text)
        whole, _, zeros = text.partition(".")
        digits = whole.removeprefix("-")
        if not digits.isdigit() or str(int(digits)) != digits or zeros.strip("0") or not -(2**63) <= int(whole) < 2**63:
            return text
        return int(whole)

    assert canonical(pa.array(texts)) == [alone(text) for text in texts]
    only = pa.array(["3", None, " 4.0"])
    assert raw_values.categories(only, FORM)[0].type == pa.int64()


@pytest.mark.parametrize(
    ("decimal_mark", "thousands", "texts", "expected"),
    [
        (
            ".",
            "",
            ["1", "-1.5e3", " .5 ", "7.", "true", "NA", "1,5", "inf", "x", "1e"],
            [1, -1500, 0.5, 7, 1, None, *"????"],
        ),
        (",", "", ["1,5", "1.5", "-2", ",25"], [1.5, "?", -2, 0.25]),
        (".", ",", ["1,234.5", "12,345", "1,5", "1234", "1,234,567", ",123"], [1234.5, 12345, "?", 1234, 1234567, "?"]),
        (",", ".", ["1.234,5", "1.234", "1.5"], [1234.5, 1234, "?"]),
        (".", " ", ["1 234.25", "12 34"], [1234.25, "?"]),
        (".", ",", ["$1,234.50", "-$5", "$ -5", "£7", "5$5", "$", "$x", "$$5"], [1234.5, -5, -5, 7, *"????"]),
        (",", ".", ["€ 1.234,50", "12,5 €", "-3¥", "12,5 EUR"], [1234.5, 12.5, -3, "?"]),
    ],
)
def test_numbers_as_they_are_written(decimal_mark: str, thousands: str, texts: list[str], expected: list[Any]) -> None:
    form = TextForm(missing=MISSING_MARKERS, decimal=decimal_mark, thousands=thousands)
    values, bad = raw_values.numbers(pa.array(texts), form)
    found = ["?" if wrong else None if value != value else value for value, wrong in zip(values, bad, strict=True)]
    assert found == expected


def test_numbers_of_types() -> None:
    for column, expected in (
        (pa.array([1, None], pa.int8()), [1, None]),
        (pa.array([0.5, float("nan")], pa.float16()), [0.5, None]),
        (pa.array([True, None]), [1, None]),
        (pa.array([decimal.Decimal("2.25"), None]), [2.25, None]),
        (pa.array([1500, None], pa.duration("ms")), [1.5, None]),
        (pa.nulls(2), [None, None]),
    ):
        values, bad = raw_values.numbers(column, FORM)
        assert [None if value != value else value for value in values] == expected
        assert not bad.any()


MOMENT = datetime.datetime(2024, 3, 5, 17, 30, 15, tzinfo=datetime.UTC)
SECONDS = MOMENT.timestamp()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([MOMENT]), SECONDS),
        (pa.array([MOMENT.replace(tzinfo=None)], pa.timestamp("ns")), SECONDS),
        (pa.array([MOMENT.date()]), SECONDS // 86400 * 86400),
        *((pa.array([int(SECONDS) * 10**power]), SECONDS) for power in (0, 3, 6, 9)),
        (pa.array([SECONDS + 0.25]), SECONDS + 0.25),
        (pa.array([str(int(SECONDS))]), SECONDS),
        (pa.array(["2024-03-05 17:30:15"]), SECONDS),
        (pa.array(["2024-03-05T17:30:15Z"]), SECONDS),
        (pa.array(["2024-03-05 17:30:15 UTC"]), SECONDS),
        (pa.array([" 2024-03-05T19:30:15+02:00"]), SECONDS),
        *((pa.array([f"2024-03-05 {text}"]), SECONDS) for text in ("17:30:15 UTC", "17:30:15.000UTC", "17:30:15 GMT")),
        *(
            (pa.array([f"2024-03-05 {text}"]), SECONDS)
            for text in ("19:30:15 +0200", "19:30:15.0 +02:00", "09:30:15 -08")
        ),
        (pa.array(["2024-03-05"]), SECONDS // 86400 * 86400),
        (pa.array([20240305]), SECONDS // 86400 * 86400),
        (pa.array(["20240305"]), SECONDS // 86400 * 86400),
        (pa.array(["NA"]), None),
        (pa.array([None], pa.timestamp("s")), None),
        *((pa.array([wrong]), "?") for wrong in ("tomorrow", "05/03/2024", "2024-13-01", 5, 20241301, -1)),
        (pa.array(["2024-03-05 17:30:15+02:00 UTC"]), "?"),
    ],
)
def test_times(column: Any, expected: Any) -> None:
    seconds, bad = raw_values.times(column, FORM)
    assert ["?" if bad[0] else None if np.isnan(seconds[0]) else seconds[0]] == [expected]


def test_parts_of_times() -> None:
    seconds = np.random.default_rng(0).integers(-(10**9), 2 * 10**9, 500).astype(float)
    moments = [datetime.datetime.fromtimestamp(each, datetime.UTC) for each in seconds]
    assert raw_values.hours(seconds).to_pylist() == [moment.hour for moment in moments]
    assert raw_values.weekdays(seconds).to_pylist() == [moment.weekday() for moment in moments]
    assert raw_values.hours(np.array([np.nan])).to_pylist() == [None]


def test_numbers_as_categories_are_the_shortest_text() -> None:
    found = raw_values.number_categories(np.array([2.0, np.nan, 2.5, 0.1, -3.0, 1e16]))
    assert found.to_pylist() == ["2", None, "2.5", "0.1", "-3", "1e+16"]
    assert raw_values.number_categories(np.array([2.0, np.nan])).type == pa.int64()


@pytest.mark.parametrize(
    "kind", [pa.struct([("a", pa.int64())]), pa.map_(pa.string(), pa.int64()), pa.list_(pa.int64())]
)
def test_types_without_a_value_per_row_are_named(kind: Any) -> None:
    for read in (raw_values.categories, raw_values.numbers, raw_values.times):
        with pytest.raises(UnfitTypeError, match=str(kind).split("<")[0]):
            read(pa.nulls(2, kind), FORM)
    with pytest.raises(UnfitTypeError, match="duration"):
        raw_values.categories(pa.array([1], pa.duration("s")), FORM)
    with pytest.raises(UnfitTypeError, match="date32"):
        raw_values.numbers(pa.array([1], pa.date32()), FORM)


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2), pa.list_view(pa.int64())],
)
def test_lists(kind: Any) -> None:
    flat, offsets = raw_values.lists(pa.array([[1, 2], None, [3, 4]], kind))
    assert (flat.to_pylist(), offsets.tolist()) == ([1, 2, 3, 4], [0, 2, 2, 4])


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_the_digest_of_a_vocabulary_tells_free_ids_from_values(kind: pa.DataType) -> None:
    def digest(values: list[int | None], cut: int = 0) -> str:
        array = pa.array([None if value is None else str(value) for value in values]).cast(kind)
        return vocabulary_digest([array[:cut], array[cut:]])

    holes: list[int | None] = [5, None, 7, None, None, 9]
    assert {digest(holes, cut) for cut in range(7)} == {digest(holes)}
    others: list[list[int | None]] = [[5, 7, 9], [5, 0, 7, 0, 0, 9], [*holes, None], [5, 7, None, None, None, 9]]
    others += [[5], [5, None], [None, 5], [None], []]
    assert len({digest(values) for values in (holes, *others)}) == 1 + len(others)
