"""Packages of models that rank items: the best of all items by their values, wherever they are loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.cli.main import main
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.deltas.live import prepare_update
from dlrm_torchrec.inference.loading import load_package
from dlrm_torchrec.inference.package import write_package
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.inference.ranking import top_items
from dlrm_torchrec.inference.sequences.history_encoder import HistoryInputs
from dlrm_torchrec.inference.tables.serve import table_weights
from dlrm_torchrec.inference.tables.types import rounded
from tests.inference.ranking.next_items import SERVED, check, package, scores, trained, users, vectors
from tests.inference.sequences.histories import ITEMS, columns
from tests.inference.sequences.test_packages import ELSEWHERE

TABLES = {
    "plain": TablesConfig(),
    "quotient_remainder": TablesConfig(kind="quotient_remainder", threshold=10, collisions=4),
}


def answers(predictor: Predictor, rows: list[dict[str, Any]]) -> list[tuple[list[Any], list[float]]]:
    named = predictor.named(predictor(columns(rows)))
    return list(zip(named["items"], named["scores"], strict=True))


@pytest.mark.parametrize(("tables", "types"), [("plain", "fp32"), ("plain", "int8"), ("quotient_remainder", "fp32")])
def test_they_tell_the_best_of_all_items(
    tables: str, types: TableType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_items, "BLOCK_ITEMS", 16)
    model, collection = trained(TABLES[tables], seed=len(tables))
    table, rows = vectors(model), users(30, 5)
    if tables == "plain":
        (weight,) = table_weights(collection).values()
        table = rounded(weight, types)[:, : table.shape[1]].double()
    for row in rows[2:]:  # histories of more and of fewer events than the model reads
        row["track"][-1:-6:-2] = ["a new one", "another", "a third"][: len(row["track"][-1:-6:-2])]
    rows = [row for row in rows if {*row["track"]} & {*ITEMS}]
    unseen = sum(item not in ITEMS for row in rows for item in row["track"])
    expected = [scores(model, table, row) for row in rows]
    path = package(tmp_path, model, collection, types)
    for most in (1, 10, 100):
        predictor = load_package(path, top=most)
        assert predictor(columns(rows)).unseen == {"item": unseen}
        for (items, found), wanted in zip(answers(predictor, rows), expected, strict=True):
            check(wanted, items, found, most=most)


def test_users_get_the_same_alone_and_beside_others(tmp_path: Path) -> None:
    predictor, rows = Predictor.load(package(tmp_path, *trained())), users(12, 3)
    requests = [predictor.encode(columns(rows[first:end])) for first, end in ((0, 1), (1, 9), (9, 12))]
    together = predictor.run(HistoryInputs.joined(requests)).of_each(requests)
    for part, request in zip(together, requests, strict=True):
        alone = predictor.run(request)
        assert part.items.to_pylist() == alone.items.to_pylist()
        assert np.array_equal(part.groups, alone.groups)  # type: ignore[arg-type]  # of users
        np.testing.assert_allclose(part.predictions, alone.predictions, atol=2e-6)
    nobody = predictor({name: values[:0] for name, values in columns(rows).items()})
    assert [column.to_pylist() for column in nobody.columns()] == [[], []]


def test_they_need_nothing_of_this_project(tmp_path: Path) -> None:
    path, rows = package(tmp_path, *trained(), "int8"), columns(users(9, 2))
    here, there = Predictor.load(path)(rows), tmp_path / "there.npy"
    subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, str(path), str(there)],
        input=json.dumps(rows), text=True, check=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert np.array_equal(np.load(there), here.probabilities)
    (tmp_path / "rows.json").write_text(json.dumps(users(9, 2)))
    told = subprocess.run(
        [sys.executable, str(path / "predictor.py"), str(tmp_path / "rows.json")],
        capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert json.loads(told.stdout)["items"] == here.columns()[0].to_pylist()


def test_a_delta_leads_to_the_next_package(tmp_path: Path) -> None:
    before = package(tmp_path, *trained(), "int8").rename(tmp_path / "before")
    model, tables = trained()
    table_weights(tables)["t_item"].data[5:9] *= -1
    after = package(tmp_path, model, tables, "int8")
    assert main(["delta", "make", str(before), str(after), "--output", str(tmp_path / "delta")]) == 0
    assert main(["delta", "apply", str(before), str(tmp_path / "delta"), "--output", str(tmp_path / "applied")]) == 0
    old, new, applied = (
        answers(Predictor.load(tmp_path / name), users(20, 4)) for name in ("before", "package", "applied")
    )
    assert applied == new != old

    live = load_package(tmp_path / "before", top=3)
    update = prepare_update(live, tmp_path / "delta")
    update.write()
    assert answers(update.predictor, users(20, 4)) == [(items[:3], scores[:3]) for items, scores in new]


def test_free_ids_are_no_answers_and_ids_may_be_values(tmp_path: Path) -> None:
    path = package(tmp_path, *trained())
    row = users(2, 6)[1]
    values = pa.array([None if item in ("i3", "i20") else item for item in ITEMS])
    predictor = Predictor.load(path, top=100)
    file = predictor.manifest["vocabularies"]["item"]
    free = Predictor(
        predictor.manifest | {"spec": SERVED.to_json()},
        {file: predictor.vocabularies[file].changed(values, np.array([3, 20]))},
        predictor.program, predictor.stored, top=100,
    )  # fmt: skip
    ((items, _),) = answers(free, [row])
    assert set(items) == set(ITEMS) - {"i3", "i20", *row["track"][-7:]}

    (item,) = SERVED.sparse
    manifest = predictor.manifest | {
        "spec": replace(SERVED, sparse=(replace(item, encoding="id"),)).to_json(),
        "vocabularies": {},
    }
    by_id = Predictor(manifest, {}, predictor.program, predictor.stored, top=100)
    track = [2 + ITEMS.index(each) for each in row["track"]]
    ((ids, found),) = answers(by_id, [row | {"track": track}])
    named = dict(zip(*answers(predictor, [row])[0], strict=True))
    assert set(ids) == {*range(2 + len(ITEMS))} - {*track[-7:]}
    assert {ITEMS[place - 2]: score for place, score in zip(ids, found, strict=True) if place > 1} == pytest.approx(
        named
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"track": [], "time": []},
            r"a row must have an event from which the next item follows: got none in row 1; lea",
        ),
        (
            {"track": ["new", "newer"]},
            r"must have an event .*: got only items that training has not seen, 2 of them, in row 1; leave out users",
        ),
        ({"track": ["i1", None]}, r"column 'track' must have no missing values: got one in row 1; leave out events"),
        (
            {"track": ["i1"]},
            r"column 'item' must have a value for each event: got 1 for 2 events in row 1; send lists",
        ),
        (
            {"time": [10**9, 10**8]},
            r"column 'time' must ascend within a row: got 100000000 after 1000000000 in row 1; sor",
        ),
        (
            {"candidates.time": 10**8},
            r"column 'candidates.time' must not be before the events of its row: got 100000000 ",
        ),
        ({"candidates.time": None}, r"column 'candidates.time' must have no missing times: got one; leave out"),
        (
            {"candidates.track": ["i1"]},
            r"columns must be the raw ones of 'log': got unknown \['candidates.track'\]; se",
        ),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    predictor = Predictor.load(package(tmp_path, *trained()))
    row = {"track": ["i1", "i2"], "time": [10**9, 10**9 + 60], "candidates.time": 10**9 + 90}
    other = row | {name: row["track"] for name in change if name not in row}
    assert len(predictor(columns([row, row])).columns()[0]) == 2
    with pytest.raises(ValueError, match=message):
        predictor(columns([other, row | change]))


def test_items_need_values(tmp_path: Path) -> None:
    (item,) = SERVED.sparse
    hashed = replace(SERVED, sparse=(replace(item, encoding="hash"),))
    program = Predictor.load(package(tmp_path, *trained())).program
    with pytest.raises(
        ValueError, match=r"encoding of 'item' must be vocab or id for answers to name items: got 'hash'"
    ):
        write_package(
            tmp_path / "p", program, hashed, vocabularies={}, model_facts={}, metrics={}, samples={"history": 1},
            ranks="item",
        )  # fmt: skip
    assert pq.read_table(tmp_path / "item.parquet")["value"].to_pylist() == ITEMS
