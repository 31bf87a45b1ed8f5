"""Continues a vocabulary with the values of another window: a value keeps its id, new ones get ids that are free.

As in ``build``, the values are read once, in order, and memory does not grow with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlrm_torchrec.datasets.prepared.files import NewFile, Stored
from dlrm_torchrec.datasets.prepared.lineage import Examples, TableChanges
from dlrm_torchrec.preparation.vocabularies.build import (
    FREE,
    MAX_VALUES,
    Ranks,
    occurrences,
    slices,
    write_vocabulary,
)
from dlrm_torchrec.preparation.vocabularies.ledger import Columns, Ledger, Mask, Sample
from dlrm_torchrec.preparation.vocabularies.policy import Highest, Policy
from dlrm_torchrec.preparation.vocabularies.runs import Run, merge
from dlrm_torchrec.preparation.vocabularies.spool import Scratch
from dlrm_torchrec.preparation.vocabularies.vocabulary import FIRST, Ids
from dlrm_torchrec.preparation.work.workers import Report

_NEW = np.int32(-1)  # in place of the id that a value will get


@dataclass(frozen=True, kw_only=True)
class Continued:
    """The vocabulary of a window."""

    digest: str
    capacity: int  # most values with an id, of later windows, too; 0 means that the table grows
    changes: TableChanges
    files: list[Stored]  # those of ``write_vocabulary``, then the ledger


def continue_vocabulary(
    runs: Mapping[str, Sequence[Run]],
    report: Report,
    *,
    policy: Policy,
    rows_before: int,
    folder: str,
    list_path: str,
    table_path: str,
    counts_path: str,
    scratch_folder: str | None,
) -> Continued:
    """The vocabulary of the values in ``runs``, those of ``ledger.joined`` by kind, and its ledger ``counts_path``.

    Free ids are given in ascending order to values by falling count, and of equal counts in the order of the values.
    The table has ``FIRST`` + capacity rows. Without a capacity, it has as many rows as it needs, at least
    ``rows_before``, those of the window before. See ``build_vocabulary`` for the other files.
    """
    with Scratch(scratch_folder) as scratch:
        ledger = Ledger(scratch, policy)
        for kind, of_kind in runs.items():
            for table in merge(of_kind, scratch.folder):
                report(0, 0)
                ledger.add(kind, table)
        deserving = ledger.deserving.total()
        capacity = policy.room(deserving)
        values = min(deserving, capacity) if capacity else deserving
        rows = FIRST + capacity if capacity else max(rows_before, FIRST + values)
        if max(len(ledger), rows) > MAX_VALUES:
            raise ValueError(
                f"{list_path} must remember at most {MAX_VALUES} values: got {max(len(ledger), rows)}; set max_age, or "
                "use the encoding 'managed' for this feature"
            )
        chosen = _choose(ledger, scratch, values=values, rows=rows)
        digest, files = write_vocabulary(
            ledger.values,
            chosen.ids,
            chosen.order,
            report,
            folder=folder,
            list_path=list_path,
            table_path=table_path,
        )
        with NewFile(folder, counts_path) as file:
            ledger.write(file, _remembered(ledger, chosen, policy, most=rows - FIRST))
        changes = TableChanges(
            rows=rows,
            values=values,
            waiting=chosen.waiting,
            added=chosen.added.total,
            returned=chosen.returned.total,
            evicted_by_age=ledger.aged.total,
            evicted_by_count=chosen.crowded.total,
            examples=Examples(
                added=ledger.words(chosen.added.places),
                returned=ledger.words(chosen.returned.places),
                evicted_by_age=ledger.words(ledger.aged.places),
                evicted_by_count=ledger.words(chosen.crowded.places),
            ),
        )
    return Continued(digest=digest, capacity=capacity, changes=changes, files=[*files, file.stored])


class _Chosen:
    """The ids of all values, and what changed."""

    def __init__(self, ids: Ids, order: Ids) -> None:
        self.ids, self.order = ids, order  # as ``write_vocabulary`` takes them
        self.added, self.returned, self.crowded = Sample(), Sample(), Sample()
        self.waiting = 0


def _choose(ledger: Ledger, scratch: Scratch, *, values: int, rows: int) -> _Chosen:
    """So many ``values`` of the ledger with their ids below ``rows``."""
    chosen = _Chosen(scratch.zeros(len(ledger), np.int32), scratch.zeros(rows - FIRST, np.int32))
    chosen.order[:] = FREE
    highest, new_counts = Highest(ledger.deserving, values), Counter[int]()
    for places, columns in ledger.pieces():
        deserves, keys = ledger.ranked(columns)
        inside, has_id, count = highest.of(keys, deserves), columns["id"] > 0, columns["count"]
        new = inside & ~has_id
        chosen.ids[places] = np.where(new, _NEW, np.where(inside, columns["id"], 0))
        old = np.flatnonzero(inside & has_id)
        chosen.order[columns["id"][old] - FIRST] = (places.start + old).astype(np.int32)
        new_counts.update(occurrences(count[new]))
        chosen.added.add(new, count, first=places.start)
        chosen.returned.add(new & (columns["evicted"] > 0), count, first=places.start)
        chosen.crowded.add(has_id & ~inside, count, first=places.start)
        chosen.waiting += int(np.count_nonzero((count > 0) & ~inside))
    free, ranks = _first_free(chosen.order, new_counts.total(), scratch), Ranks(new_counts)
    for places, columns in ledger.pieces():
        at = np.flatnonzero(chosen.ids[places] == _NEW)
        ids = free[ranks.of(columns["count"][at])]
        chosen.ids[places.start + at] = ids
        chosen.order[ids - FIRST] = (places.start + at).astype(np.int32)
    return chosen


def _first_free(order: Ids, how_many: int, scratch: Scratch) -> Ids:
    """The first ids without a value."""
    free, found = scratch.zeros(how_many, np.int32), 0
    for first, part in slices(order):
        if found == how_many:
            break
        ids = (FIRST + first + np.flatnonzero(part == FREE))[: how_many - found]
        free[found : found + len(ids)] = ids
        found += len(ids)
    return free


def _remembered(ledger: Ledger, chosen: _Chosen, policy: Policy, *, most: int) -> Iterator[tuple[slice, Columns, Mask]]:
    """All values with what is now known of them; of forgotten ones, only the ``most`` that lost their ids last."""
    newest = Highest(ledger.forgotten, most)
    for places, columns in ledger.pieces():
        ids, forgotten = chosen.ids[places], columns["count"] == 0
        lost = (columns["id"] > 0) & (ids == 0)
        now: dict[str, Any] = {"id": ids, "evicted": np.where(lost, np.int32(policy.window), columns["evicted"])}
        yield places, {**columns, **now}, ~forgotten | newest.of(columns["evicted"], forgotten)
