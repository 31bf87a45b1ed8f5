"""Raw histories and candidates become what training reads of the same events."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.inference.lookups import Lookup
from dlrm_torchrec.inference.sequences import history_encoder
from dlrm_torchrec.inference.sequences.history_encoder import HistoryInputs
from dlrm_torchrec.schema import DatasetSpec
from tests.inference.sequences.histories import MARKED, PLAIN, SPEC, batch_of, columns, draw, encoder, marked

CUTS = [
    SamplesConfig(history=100),
    SamplesConfig(history=4),
    SamplesConfig(history=5, within=3),
    SamplesConfig(history=4, pools=("like", "5")),
    SamplesConfig(history=6, pools=("5", "skip"), within=7),
]


def check_equal(
    found: HistoryInputs, rows: list[dict[str, Any]], samples: SamplesConfig, spec: DatasetSpec = SPEC
) -> None:
    """Raises AssertionError unless ``found`` is what training makes of these rows."""
    expected = batch_of(rows, samples, spec)
    jagged = expected.sparse_features.to_dict()
    for feature, ids in zip(spec.sparse, found.ids, strict=True):
        assert ids.tolist() == jagged[feature.name].values().tolist(), feature.name
    assert found.times.tolist() == expected.times.tolist()
    assert found.actions.tolist() == expected.actions.tolist()
    assert found.lengths.tolist() == expected.lengths.tolist()
    assert found.num_candidates.tolist() == expected.num_candidates.tolist()
    assert found.groups.tolist() == [len(row["candidates.track"]) for row in rows]
    assert len(found) == expected.num_rows
    assert {array.dtype for array in found.arrays} == {np.dtype(np.int64)}


@pytest.mark.parametrize("samples", CUTS, ids=str)
@pytest.mark.parametrize("spec", [PLAIN, SPEC], ids=["plain", "crosses"])
def test_inputs_are_those_of_training(samples: SamplesConfig, spec: DatasetSpec) -> None:
    for seed in range(5):
        rows = draw(9, seed)
        check_equal(encoder(samples, spec)(columns(rows)), rows, samples, spec)


@pytest.mark.parametrize("samples", CUTS[:2], ids=str)
def test_crosses_read_the_marks_of_candidates(samples: SamplesConfig) -> None:
    for seed in range(5):
        rows = marked(draw(9, seed), seed)
        found = encoder(samples, MARKED)(columns(rows))
        check_equal(found, rows, samples, MARKED)
        also = [row | {name: ["x"] * 3 for name in ("is_organic", "screen", "unread")} for row in rows]
        again = encoder(samples, MARKED)(columns(also))  # those of histories, which nothing reads
        assert all(np.array_equal(one, other) for one, other in zip(found.arrays, again.arrays, strict=True))
        other = [row | {"candidates.is_organic": [1 - each for each in row["candidates.is_organic"]]} for row in rows]
        cross = [feature.name for feature in MARKED.sparse].index("cross")
        assert (encoder(samples, MARKED)(columns(other)).ids[cross] != found.ids[cross]).mean() > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"candidates.is_organic": [0, 2]},
            r"column 'candidates.is_organic' must hold values that .*: got 2 in row 1; ",
        ),
        ({"candidates.is_organic": [None, 0]}, r"'candidates.is_organic' must hold values .*: got None in row 1; "),
        ({"candidates.screen": ["tv"]}, r"'candidates.screen' must have a value for each candidate: got 1 for 2 cand"),
    ],
)
def test_marks_that_are_no_ids_are_refused(change: dict[str, Any], message: str) -> None:
    (row,) = marked(draw(2, 1)[1:], 0)
    row |= {"candidates.track": ["i1", "i2"], "candidates.artist": [1, 2]}
    row |= {"candidates.is_organic": [0, 1], "candidates.screen": ["3", "tv"]}
    encode = encoder(CUTS[0], MARKED)
    assert len(encode(columns([row, row]))) == 4
    with pytest.raises(ValueError, match=message):
        encode(columns([row, row | change]))


def test_a_missing_mark_reads_its_own_id() -> None:
    (row,) = marked(draw(2, 1)[1:], 0)
    row |= {"candidates.screen": [None] * len(row["candidates.track"])}
    encode, asked = encoder(CUTS[0], MARKED), "candidates.screen"
    found = encode(columns([row]))
    cross = [feature.name for feature in MARKED.sparse].index("cross")

    def first(values: Any) -> NDArray[np.int64]:
        return np.zeros(len(values), np.int64)

    encode.rows.lookups[asked] = Lookup(first, first, unseen=1)
    known = encode(columns([row | {asked: ["tv"] * len(row[asked])}]))  # as if the id of a known value were 0
    assert found.ids[cross].tolist() == known.ids[cross].tolist()


def test_an_unseen_mark_reads_the_id_of_evaluation_and_is_counted() -> None:
    rows = marked(draw(9, 4), 4)
    for row in rows[::2]:
        row["candidates.screen"][0] = "car"
    found = encoder(CUTS[0], MARKED)(columns(rows))
    check_equal(found, rows, CUTS[0], MARKED)
    unseen = dict(zip((feature.name for feature in MARKED.sparse), found.unseen.tolist(), strict=True))
    assert unseen == {"city": 0, "item": 0, "cross": 5, "artist": 0, "segment": 0}


def test_a_request_without_marks_is_refused() -> None:
    rows = columns(draw(3, 1))
    with pytest.raises(ValueError, match=r"must be the raw ones of 'log': got no \['candidates.is_organic', 'candidat"):
        encoder(CUTS[0], MARKED)(rows)


def test_columns_may_be_arrow_and_dates() -> None:
    rows, samples = draw(6, 7), CUTS[1]
    table = pa.Table.from_pylist(rows)
    for name in ("time", "candidates.time"):
        kind = pa.timestamp("s")
        table = table.set_column(
            table.column_names.index(name), name, table[name].cast(pa.list_(kind) if name == "time" else kind)
        )
    check_equal(encoder(samples)({name: table[name] for name in table.column_names}), rows, samples)
    dated = [row | {"candidates.time": str(np.datetime64(row["candidates.time"], "s"))} for row in rows]
    check_equal(encoder(samples)(columns(dated)), rows, samples)


@pytest.mark.parametrize("spec", [PLAIN, SPEC], ids=["plain", "crosses"])
def test_pieces_are_the_same_samples(spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, samples = draw(12, 3), CUTS[0]
    whole = encoder(samples, spec)(columns(rows))
    monkeypatch.setattr(history_encoder, "MOST_TOKENS", 20)
    pieces = list(whole.pieces())
    assert len(pieces) > 3
    assert max(int(piece.lengths.sum()) for piece in pieces) < 20 + int(whole.lengths.max())
    joined = HistoryInputs.joined(pieces)
    assert all(np.array_equal(one, other) for one, other in zip(joined.arrays, whole.arrays, strict=True))
    requests = [encoder(samples, spec)(columns(rows[first : first + 5])) for first in (0, 5, 10)]
    check_equal(HistoryInputs.joined(requests), rows, samples, spec)


def test_what_training_has_not_seen_is_counted() -> None:
    (row,) = draw(2, 1)[1:]
    row |= {"city": "Łódź", "artist": [12, *row["artist"][1:]], "candidates.track": ["i999"] * 2}
    found = encoder(CUTS[0], PLAIN)(columns([row | {"candidates.artist": [1, None]}]))
    unseen = dict(zip((feature.name for feature in PLAIN.sparse), found.unseen.tolist(), strict=True))
    assert unseen == {"city": 1, "item": 2, "artist": 1, "segment": 0}
    assert found.ids[1][-2:].tolist() == [1, 1]
    assert found.ids[2][0] == 0


def test_a_log_of_one_action_has_no_column_for_it() -> None:
    assert PLAIN.history is not None
    spec = replace(PLAIN, history=replace(PLAIN.history, actions=("event",), positive=(), counted=True))
    (row,) = draw(2, 1)[1:]
    count = len(row["track"])
    row |= {"time": list(range(count)), "candidates.time": count}
    del row["action"]
    found = encoder(CUTS[0], spec)(columns([row]))
    assert found.actions.tolist() == [1] * count + [0] * len(row["candidates.track"])
    assert found.times.tolist() == [*range(count), *[count] * len(row["candidates.track"])]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"action": ["like", "buy"]}, r"column 'action' must hold the actions of the .*: got 'buy' in row 1; send some of"),
    ({"action": ["like", None]}, r"column 'action' must hold the actions of the training data: got None in row 1;"),
    (
        {"time": [1_700_000_009, 1_700_000_003]},
        r"column 'time' must ascend within a row: got 1700000003 after .*; sort",
    ),
    ({"time": [1_700_000_009, None]}, r"column 'time' must have no missing times: got one; leave out events without"),
    ({"time": [1_700_000_009, "soon"]}, r"column 'time' must hold times: got 'soon'"),
    ({"candidates.time": 1_600_000_000}, r"column 'candidates.time' must not be before the events of its row: got 16"),
    ({"candidates.time": None}, r"column 'candidates.time' must have no missing times: got one"),
    ({"candidates.track": [], "candidates.artist": []}, r"a row must have candidates: got none in row 1; send those"),
    ({"artist": [1]}, r"column 'artist' must have a value for each event: got 1 for 2 events in row 1; send lists of"),
    ({"action": []}, r"column 'action' must have a value for each event: got 0 for 2 events in row 1"),
    ({"candidates.artist": [1]}, r"column 'candidates.artist' must have a value for each candidate: got 1 for 3 cand"),
    ({"track": ["i1", None]}, r"column 'track' must have no missing values: got one in row 1; leave out events and"),
    ({"candidates.track": ["i1", None, "i3"]}, r"column 'candidates.track' must have no missing values: got one in ro"),
    ({"city": None}, r"column 'city' must have no missing values: got one in row 1; .* send a new text for a new user"),
    ({"track": "i1"}, r"column 'track' must hold a list of values per row: got 'i1'"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_a_row_must_not_hold_is_said(change: dict[str, Any], message: str) -> None:
    row = draw(2, 1)[1]
    row |= {name: row[name][:2] for name in ("track", "artist", "action", "time")}
    row |= {"candidates.track": ["i1", "i2", "i3"], "candidates.artist": [1, 2, 3]}
    encode = encoder(CUTS[0])
    assert len(encode(columns([row, row]))) == 6
    with pytest.raises(ValueError, match=message):
        encode(columns([row, row | change]))


def test_a_request_must_not_copy_histories_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = draw(2, 1)[1:]
    encode = encoder(CUTS[0], SPEC)
    tokens = int(encode(columns([row])).lengths.sum())
    monkeypatch.setattr(history_encoder, "MOST_SPREAD", tokens - 1)
    message = rf"^candidates, each with .* at most {tokens - 1:,} events: got {tokens:,}; send fewer"
    with pytest.raises(ValueError, match=message):
        encode(columns([row]))


def test_columns_are_those_of_the_spec() -> None:
    rows = columns(draw(3, 1))
    encode = encoder(CUTS[0])
    assert set(encode.columns) == encode.known - {"like"} == set(rows)
    assert {name for name, listed in encode.keys if not listed} == {"city", "segment", "candidates.time"}
    for absent, unknown, message in (
        (["track"], "", r"got no \['track'\]; send all"),
        (["action", "time", "candidates.time"], "", r"got no \['action', 'time', 'candidates.time'\]; send all"),
        (["time"], "When", r"got no \['time'\] and unknown \['When'\]; send all columns and nothing else"),
    ):
        with pytest.raises(ValueError, match=rf"columns must be the raw ones of 'log': {message}"):
            encode(
                {name: values for name, values in rows.items() if name not in absent}
                | ({unknown: []} if unknown else {})
            )
    with pytest.raises(ValueError, match=r"columns must have one value per row: got 2 of 'time' for 3 rows; send a"):
        encode(rows | {"time": rows["time"][:2]})
    with pytest.raises(ValueError, match=r"columns must be an object: got \[\]; send the values of each column"):
        encode([])  # type: ignore[arg-type]  # what is refused
    assert len(encode({name: [] for name in rows})) == 0
