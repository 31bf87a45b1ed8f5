"""Vocabularies that go on for many windows, against plain dictionaries: growth, eviction, return, full tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.lineage import TableChanges
from dlrm_torchrec.preparation.vocabularies import runs as runs_module
from dlrm_torchrec.preparation.vocabularies import spool
from dlrm_torchrec.preparation.vocabularies.build import build_vocabulary, read_vocabulary
from dlrm_torchrec.preparation.vocabularies.continued import Continued, continue_vocabulary
from dlrm_torchrec.preparation.vocabularies.counting import ValueCounter
from dlrm_torchrec.preparation.vocabularies.ledger import KINDS, joined
from dlrm_torchrec.preparation.vocabularies.policy import Policy
from dlrm_torchrec.preparation.vocabularies.runs import Run, open_run, write_run
from dlrm_torchrec.preparation.vocabularies.vocabulary import Vocabulary

Value = int | str
PATHS: dict[str, Any] = {"list_path": "vocab/a.parquet", "table_path": "work/table"}


@dataclass
class Entry:
    count: int = 0
    seen: int = 0
    id: int = 0
    evicted: int = 0


@dataclass
class Reference:
    """The rules of a policy, one value after the other."""

    policy: Policy
    rows: int = 2
    known: dict[Value, Entry] = field(default_factory=dict)

    def day(self, values: list[Value], window: int) -> dict[str, Any]:
        """Count the values of a window; what changed, as in TableChanges, with sets of values for numbers."""
        policy = self.policy
        for value in values:
            entry = self.known.setdefault(value, Entry())
            entry.count, entry.seen = entry.count + 1, window
        aged = set[Value]()
        for value, entry in list(self.known.items()):
            if policy.max_age and window - entry.seen >= policy.max_age:
                entry.count = 0
                if entry.id:
                    aged.add(value)
                    entry.id, entry.evicted = 0, window
                elif not entry.evicted:
                    del self.known[value]
        ranked = sorted(self.known, key=lambda v: (-self.known[v].count, not self.known[v].id, isinstance(v, str), v))
        ranked = [v for v in ranked if self.known[v].id or self.known[v].count >= policy.min_count]
        winners, losers = (
            (ranked[: policy.capacity], ranked[policy.capacity :]) if policy.capacity else (ranked, list[Value]())
        )
        crowded = {value for value in losers if self.known[value].id}
        for value in crowded:
            self.known[value].id, self.known[value].evicted = 0, window
        self.rows = 2 + policy.capacity if policy.capacity else max(self.rows, 2 + len(winners))
        taken = {entry.id for entry in self.known.values()}
        free = iter([id_ for id_ in range(2, self.rows) if id_ not in taken])
        added = [value for value in winners if not self.known[value].id]
        for value in sorted(added, key=lambda v: (-self.known[v].count, isinstance(v, str), v)):
            self.known[value].id = next(free)
        returned = {value for value in added if self.known[value].evicted}
        forgotten = [v for v, entry in self.known.items() if not entry.count]
        forgotten.sort(key=lambda v: (-self.known[v].evicted, isinstance(v, str), v))
        for value in forgotten[self.rows - 2 :]:
            del self.known[value]
        waiting = {value for value, entry in self.known.items() if entry.count and not entry.id}
        return {
            "rows": self.rows,
            "values": len(winners),
            "waiting": waiting,
            "added": set(added),
            "returned": returned,
            "evicted_by_age": aged,
            "evicted_by_count": crowded,
        }

    def listed(self) -> list[Value | None]:
        by_id = {entry.id: value for value, entry in self.known.items() if entry.id}
        return [by_id.get(id_) for id_ in range(2, self.rows)]


def counted(folder: Path, pieces: list[list[Value]]) -> dict[str, list[Run]]:
    """The values of a window as runs on disk, a piece of whole numbers as int64 and another as text."""
    runs: dict[str, list[Run]] = {kind: [] for kind in KINDS}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "runs").open("wb") as file:
        for piece in pieces:
            counter = ValueCounter()
            texts = any(isinstance(value, str) for value in piece)
            counter.add(pa.array([str(value) for value in piece], pa.string()) if texts else pa.array(piece, "int64"))
            for kind, table in counter.take().items():
                runs[kind].append(partial(open_run, str(folder / "runs"), file.tell()))
                write_run(file, [table])
    return runs


def go_on(folder: Path, before: Path | None, pieces: list[list[Value]], policy: Policy, rows: int) -> Continued:
    today, ledger = counted(folder, pieces), "" if before is None else str(before / "counts/a.parquet")
    return continue_vocabulary(
        {kind: joined(today[kind], ledger, kind, window=policy.window) for kind in KINDS},
        lambda *_: None,
        policy=policy,
        rows_before=rows,
        folder=str(folder),
        counts_path="counts/a.parquet",
        scratch_folder=str(folder),
        **PATHS,
    )


def drifting(random: np.random.Generator, window: int, rows: int, *, texts: bool) -> list[Value]:
    """Values of a window: ids drift slowly, a few come back every five windows, and some are texts."""
    base = random.zipf(1.4, rows) % 60 + 3 * window
    base = np.where(random.random(rows) < 0.2, window % 5 - 7, base)
    base[: 3 * (window % 3 == 0)] = 10**15
    return [f"w{value}" if texts and value % 3 == 0 else int(value) for value in base]


def as_in_files(values: list[Value | None]) -> list[Value | None]:
    if any(isinstance(value, str) for value in values):
        return [None if value is None else str(value) for value in values]
    return values


@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize(
    ("min_count", "capacity", "max_age"), [(1, 0, 0), (3, 0, 4), (2, 40, 0), (2, 20, 3), (1, 7, 2), (4, 500, 1)]
)
@pytest.mark.parametrize("small", [False, True])
def test_25_windows_equal_dictionaries(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts: bool,
    min_count: int,
    capacity: int,
    max_age: int,
    small: bool,
) -> None:
    if small:
        monkeypatch.setattr(spool, "_HELD_BYTES", 100)
        monkeypatch.setattr(runs_module, "_BATCH_BYTES", 200)
        monkeypatch.setattr(runs_module, "_MERGED_BYTES", 1000)
    random = np.random.default_rng([min_count, capacity, max_age, texts])
    policy = Policy(window=0, min_count=min_count, capacity=capacity, max_age=max_age)
    reference, rows, before = Reference(policy), 2, None
    totals, ids_of = Counter[str](), dict[Value, int]()
    for window in range(1, 26 if not small else 9):
        values = drifting(random, window, 120, texts=texts)
        cuts = sorted(random.integers(0, len(values) + 1, 3).tolist())
        pieces = [values[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True)]
        folder = tmp_path / str(window)
        wanted = reference.day(values, window)
        found = go_on(folder, before, pieces, replace(policy, window=window), rows)
        for name, value in wanted.items():
            assert getattr(found.changes, name) == (value if isinstance(value, int) else len(value)), (window, name)
            if name in vars(found.changes.examples):
                examples = getattr(found.changes.examples, name)
                assert set(examples) <= {str(each) for each in value}
                assert len(examples) == min(3, len(value))
                totals[name] += len(value)
        listed = pq.read_table(folder / "vocab/a.parquet")["value"].to_pylist()
        assert listed == as_in_files(reference.listed())
        vocabulary = Vocabulary.load(found.changes.rows, found.digest, tables(folder, found))
        now = {value: entry.id for value, entry in reference.known.items() if entry.id}
        asked = [*values, "never", *ids_of]
        ids = vocabulary.encode(pa.array([str(each) for each in asked])).tolist()
        assert ids == [now.get(each, 1) for each in asked]
        stayed = now.keys() & ids_of.keys() - wanted["evicted_by_age"] - wanted["evicted_by_count"] - wanted["added"]
        assert {value: now[value] for value in stayed} == {value: ids_of[value] for value in stayed}
        ids_of, rows, before = now, found.changes.rows, folder
    assert totals["added"] > 20
    if not small:
        assert (totals["evicted_by_age"] > 0) == (max_age > 0)
        assert (totals["evicted_by_count"] > 0) == (0 < capacity < 500)
        assert (totals["returned"] > 0) == (max_age > 0 or 0 < capacity < 500)


def tables(folder: Path, made: Continued) -> list[str]:
    return [f"{folder}/{file.path}" for file in made.files if file.path.startswith("work/table")]


@pytest.mark.parametrize("min_count", [1, 3])
def test_the_first_window_is_a_plain_vocabulary_and_can_be_read_again(tmp_path: Path, min_count: int) -> None:
    values = drifting(np.random.default_rng(0), 1, 500, texts=True)
    plain = build_vocabulary(
        counted(tmp_path / "plain", [values]),
        lambda *_: None,
        min_count=min_count,
        folder=str(tmp_path / "plain"),
        scratch_folder=None,
        **PATHS,
    )
    first = go_on(tmp_path / "first", None, [values], Policy(window=1, min_count=min_count), 2)
    assert (first.changes.rows, first.digest) == plain[:2]
    assert (tmp_path / "first/vocab/a.parquet").read_bytes() == (tmp_path / "plain/vocab/a.parquet").read_bytes()

    roomy = go_on(tmp_path / "roomy", None, [values], Policy(window=1, min_count=min_count, headroom=0.5), 2)
    assert roomy.capacity == roomy.changes.rows - 2 == -(-3 * roomy.changes.values // 2)
    listed = pq.read_table(tmp_path / "roomy/vocab/a.parquet")["value"].to_pylist()
    assert listed[roomy.changes.values :] == [None] * (roomy.capacity - roomy.changes.values)
    assert roomy.digest != first.digest
    source = str(tmp_path / "roomy/vocab/a.parquet")
    rows, digest, files = read_vocabulary(source, lambda *_: None, folder=str(tmp_path / "again"), **PATHS)
    assert (rows, digest) == (roomy.changes.rows, roomy.digest)
    assert (tmp_path / "again/vocab/a.parquet").read_bytes() == (tmp_path / "roomy/vocab/a.parquet").read_bytes()
    copy = Vocabulary.load(rows, digest, [f"{tmp_path}/again/{file.path}" for file in files[1:]])
    kept = Vocabulary.load(rows, digest, tables(tmp_path / "roomy", roomy))
    words = pa.array([str(value) for value in [*values, "no"]])
    assert copy.encode(words).tolist() == kept.encode(words).tolist()


def test_60_windows_of_drift_stay_small(tmp_path: Path) -> None:
    """Every window has 200 new values; without eviction there would be 12,000."""
    random, policy = np.random.default_rng(1), Policy(window=0, min_count=2, capacity=400, max_age=3)
    sizes, before, rows = [], None, 2
    for window in range(1, 61):
        values = (random.integers(0, 200, 1500) + 200 * window).tolist()
        folder = tmp_path / str(window)
        found = go_on(folder, before, [values], replace(policy, window=window), rows)
        assert isinstance(found.changes, TableChanges)
        assert found.changes.rows == 402
        sizes.append(len(pq.read_table(folder / "counts/a.parquet")))
        before, rows = folder, found.changes.rows
    assert max(sizes[10:]) <= 400 + 3 * 200 + 400  # with ids, waiting, and once evicted


def test_too_many_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlrm_torchrec.preparation.vocabularies.continued.MAX_VALUES", 50)
    with pytest.raises(ValueError, match=r"vocab/a.parquet must remember at most 50 values: got 82; set max_age"):
        go_on(tmp_path, None, [list(range(80))], Policy(window=1), 2)
