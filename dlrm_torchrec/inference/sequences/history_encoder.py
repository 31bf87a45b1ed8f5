"""Turns what users did, and the candidates to score for them, into the inputs of a model, exactly as in training.

A package holds a copy of this file, which needs only numpy and pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_torchrec.inference.encoder import Encoder, Inputs, Key, read_flat
from dlrm_torchrec.inference.lookups import FIRST, MISSING, UNSEEN, Lookup, Vocabulary, finalised
from dlrm_torchrec.raw_values import numbers, times

Ids = npt.NDArray[np.int64]

TIME, ACTION, CANDIDATES = "time", "action", "candidates."  # columns of a request, and how those of candidates begin
ASKED = f"{CANDIDATES}{TIME}"  # the column that says when the candidates of a row are shown
MOST_TOKENS = 65_536  # that a model gets at once, or those of one sample
MOST_SPREAD = 2**24  # tokens of a request whose candidates are samples of their own, each with the history again
_HOUR_S, _MICROS = 3600, 10**6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LISTED = {"encoding": "vocab", "rows": 0, "part": "value", "multi_hot": True}  # of features whose values are known


@dataclass(frozen=True)
class HistoryInputs:
    """B samples with T tokens, the events of a history and then its C candidates, in the form that the model takes."""

    ids: tuple[Ids, ...]  # of each feature: one for each token, for each candidate (crosses), or for each sample
    kinds: tuple[str, ...]  # of each feature: what it has an id for, "token", "candidate" or "sample"
    times: Ids  # (T,) seconds
    actions: Ids  # (T,) from 1 on; 0 for candidates
    lengths: Ids  # (B,) tokens
    num_candidates: Ids  # (B,)
    groups: Ids  # (users,) candidates: a user has one sample, or one for each candidate
    unseen: Ids  # (F,) number of unknown raw values

    def __len__(self) -> int:
        """The number of predictions, one for each candidate."""
        return int(self.groups.sum())

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        """The arguments of the model's program."""
        return [np.concatenate(self.ids), self.times, self.actions, self.lengths, self.num_candidates]

    @staticmethod
    def joined(several: Sequence[Any]) -> HistoryInputs:
        """The samples of one or more requests, in order."""
        names = ("times", "actions", "lengths", "num_candidates", "groups")
        parts = {name: [getattr(each, name) for each in several] for name in names}
        return HistoryInputs(
            ids=tuple(np.concatenate(ids) for ids in zip(*(each.ids for each in several), strict=True)),
            kinds=several[0].kinds,
            unseen=np.sum([each.unseen for each in several], axis=0),
            **{name: np.concatenate(part) for name, part in parts.items()},
        )

    def pieces(self) -> Iterator[HistoryInputs]:
        """The same samples, a few at a time, so that the memory of a model has a limit; only the first has unseen."""
        piece = (self.lengths.cumsum() - 1) // MOST_TOKENS
        cuts = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(piece)]
        ends = {
            "token": np.append(0, self.lengths.cumsum()),
            "candidate": np.append(0, self.num_candidates.cumsum()),
            "sample": np.arange(len(piece) + 1),
        }
        for first, last in pairwise(cuts):
            span = {kind: slice(end[first], end[last]) for kind, end in ends.items()}
            yield HistoryInputs(
                ids=tuple(ids[span[kind]] for ids, kind in zip(self.ids, self.kinds, strict=True)),
                kinds=self.kinds,
                times=self.times[span["token"]],
                actions=self.actions[span["token"]],
                lengths=self.lengths[first:last],
                num_candidates=self.num_candidates[first:last],
                groups=self.num_candidates[first:last],
                unseen=self.unseen if first == 0 else np.zeros_like(self.unseen),
            )


class HistoryEncoder:
    """Maps raw columns of users to ``HistoryInputs``; threads may share it.

    A row is a user: one value for each feature of users; lists, with an entry for each event in the order of their
    times, for each feature of events, ``action`` and ``time``; lists with an entry for each candidate in
    ``candidates.<column>`` for each feature of events, and for each mark that a cross reads; and in ``candidates.time``
    the time when they are shown. A log with a single action has no column for it. Marks of events may be sent, too,
    but nothing reads them, because crosses are those of candidates.

    A row becomes one sample, so that its history is read once; with crosses, which are context of a single candidate,
    it becomes one for each candidate.

    A model that ranks items is not asked for candidates: ``candidates.time`` says when the next item is asked for, and
    a token of that time and no item ends each sample. Actions need not be sent unless histories are cut by them. Events
    of unseen items are left out before that, as in training, because one id means all of these items.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        vocabularies: Mapping[str, Lookup],
        samples: Mapping[str, Any],
        *,
        ranks: bool = False,
    ) -> None:
        """``samples`` are the fields of the SamplesConfig of training; the others are those of ``Encoder``.

        ``ranks`` says that the model ranks items.
        """
        history = spec["history"]
        self.events, self.crosses = history["events"], {cross["name"]: cross["of"] for cross in history["crosses"]}
        self.actions: list[str] = history["actions"]
        self.sparse, self.samples, self.ranks = spec["sparse"], samples, ranks
        self.read_times = numbers if history["counted"] else times
        own = [feature for feature in self.sparse if feature["name"] not in self.crosses]
        asked = [_of_candidates(feature) for feature in own if feature["name"] in self.events and not ranks]
        marks = {mark["name"]: mark for mark in history["marks"]}
        self.marks = [name for name in marks if any(name in of for of in self.crosses.values())]
        unread = {mark["column"] or mark["name"] for mark in marks.values()}  # of the events of a history
        # the first id of a mark whose raw values are ids, which has none for missing and unseen values
        self.first_ids = {name: FIRST if marks[name]["encoding"] == "id" else 0 for name in self.marks}
        lookups = dict(vocabularies)
        lookups |= {f"{CANDIDATES}{name}": found for name, found in vocabularies.items() if name in self.events}
        if ranks and not samples["pools"]:
            unread.add(ACTION)
        elif len(self.actions) > 1:
            lookups[ACTION] = Vocabulary.of(pa.array(self.actions)).lookup
            asked.append(own[0] | {"name": ACTION, "column": ACTION} | _LISTED)
        for name in self.marks:
            ids = Vocabulary.of(pa.array(np.arange(marks[name]["rows"]))).lookup
            lookups[f"{CANDIDATES}{name}"] = vocabularies.get(name, ids)
            asked.append(_of_candidates(own[0] | marks[name] | _LISTED))
        self.features = {feature["name"]: place for place, feature in enumerate([*own, *asked])}
        # the first id of an item whose events are read
        self.first_item = FIRST if ranks and own[self.features[self.events[0]]]["encoding"] == "vocab" else 0
        # no event of the training data lacks them; among values that are ids, none means a missing one
        user, item = history.get("user", ""), self.events[0]
        present = {user, item, f"{CANDIDATES}{item}"}
        self.present = [f["name"] for f in (*own, *asked) if f["name"] in present and f["encoding"] != "id"]
        raw = dict(spec) | {"dense": [], "sparse": [*own, *asked]}
        self.rows = Encoder(raw, lookups, also=(TIME, ASKED), unread=unread)
        self.keys: dict[Key, None] = self.rows.keys | {(TIME, True): None, (ASKED, False): None}
        self.columns, self.known = self.rows.wanted, self.rows.known
        self.kinds = tuple(
            "token" if each["name"] in self.events else "candidate" if each["name"] in self.crosses else "sample"
            for each in self.sparse
        )

    def __call__(self, columns: Mapping[str, Any]) -> HistoryInputs:
        """The samples of users, from a list, NumPy array or Arrow array of a value or list for each of them per column.

        Of a history, the events are kept that training would have kept. A cross counts the unseen values of its marks.
        Raises ValueError for what ``Encoder`` refuses, for lists of different lengths, for times that are missing or
        descend, for an unknown action, for a mark that is no id of its table, for a row without candidates, or without
        an event of an item that training has seen if the model ranks items.
        """
        found = self.rows(columns)
        happened, counts = self._times(columns[TIME], TIME, listed=True)
        now, rows = self._times(columns[ASKED], ASKED, listed=False)
        for name, size in ((TIME, len(counts)), (ASKED, len(rows))):
            if size != found.lengths.shape[1]:
                raise ValueError(
                    f"columns must have one value per row: got {size} of {name!r} for {found.lengths.shape[1]} rows; "
                    "send a list, or a time, for each user"
                )
        groups = self._groups(found)
        self._check_lengths(found, counts, groups)
        self._check_present(found)
        owners, asking = np.repeat(np.arange(len(counts)), counts), np.repeat(np.arange(len(groups)), groups)
        _check_order(happened, owners, now)
        actions = self._actions(found, columns)
        marks = {name: self._marks(found, columns, name) for name in self.marks}
        known = np.flatnonzero(found.ids[self.features[self.events[0]]] >= self.first_item)
        known_counts = np.bincount(owners[known], minlength=len(groups))
        kept = known[self._kept(actions[known], known_counts, owners[known])]
        user = asking if self.crosses else np.arange(len(groups))  # of each sample
        num_candidates = np.ones_like(asking) if self.crosses else groups
        num_events = np.bincount(owners[kept], minlength=len(groups))
        if self.ranks:
            _check_histories(num_events, counts)
        spread = int((num_events[user] + num_candidates).sum())
        if self.crosses and spread > MOST_SPREAD:
            raise ValueError(
                f"candidates, each with its user's history, must have at most {MOST_SPREAD:,} events: got {spread:,}; "
                "send fewer candidates or users at once"
            )
        events = kept[_spans((num_events.cumsum() - num_events)[user], num_events[user])]
        samples = np.arange(len(user))
        owner_of_token = np.append(np.repeat(samples, num_events[user]), np.repeat(samples, num_candidates))
        order = np.argsort(owner_of_token, kind="stable")
        ids, unseen = list[Ids](), list[int]()
        for feature in self.sparse:
            name = feature["name"]
            if name in self.crosses:
                ids.append(self._crossed(feature, found, marks, now=now, asking=asking))
                read = [f"{CANDIDATES}{part}" for part in self.crosses[name] if part in marks]
                unseen.append(sum(int(found.unseen[self.features[mark]]) for mark in read))
                continue
            place = self.features[name]
            ids.append(found.ids[place])
            unseen.append(int(found.unseen[place]))
            if name in self.events and self.ranks:
                ids[-1] = np.append(ids[-1][events], np.full(len(asking), MISSING))[order]
            elif name in self.events:
                place = self.features[f"{CANDIDATES}{name}"]
                ids[-1] = np.append(ids[-1][events], found.ids[place])[order]
                unseen[-1] += int(found.unseen[place])
            else:
                ids[-1] = ids[-1][user]
        return HistoryInputs(
            ids=tuple(ids),
            kinds=self.kinds,
            times=np.append(happened[events], now[asking])[order],
            actions=np.append(actions[events], np.zeros_like(asking))[order],
            lengths=np.bincount(owner_of_token, minlength=len(user)),
            num_candidates=num_candidates,
            groups=groups,
            unseen=np.array(unseen, np.int64),
        )

    def _times(self, column: Any, name: str, *, listed: bool) -> tuple[Ids, Ids]:
        """Whole seconds of all values, and how many there are in each row."""
        (seconds,), lengths = read_flat(column, (name, listed), self.read_times, self.rows.form)
        if np.isnan(seconds).any():
            raise ValueError(f"column {name!r} must have no missing times: got one; leave out events without a time")
        rounded: Ids = np.round(seconds * _MICROS).astype(np.int64) // _MICROS
        return rounded, np.ones(len(rounded), np.int64) if not listed else lengths

    def _groups(self, found: Inputs) -> Ids:
        """The candidates of each row."""
        if self.ranks:
            return np.ones(found.lengths.shape[1], np.int64)
        groups: Ids = found.lengths[self.features[f"{CANDIDATES}{self.events[0]}"]].astype(np.int64)
        return groups

    def _check_lengths(self, found: Inputs, counts: Ids, groups: Ids) -> None:
        if not groups.all():
            raise ValueError(
                f"a row must have candidates: got none in row {int(np.flatnonzero(groups == 0)[0])}; send those to be "
                f"scored in {CANDIDATES}{self.events[0]}"
            )
        wanted = {name: counts for name in (*self.events, ACTION) if name in self.features}
        if not self.ranks:
            wanted |= {f"{CANDIDATES}{name}": groups for name in (*self.events, *self.marks)}
        for name, lengths in wanted.items():
            unequal = np.flatnonzero(found.lengths[self.features[name]] != lengths)
            if len(unequal):
                row, what = unequal[0], "candidate" if name.startswith(CANDIDATES) else "event"
                raise ValueError(
                    f"column {name!r} must have a value for each {what}: got {found.lengths[self.features[name]][row]} "
                    f"for {lengths[row]} {what}s in row {row}; send lists of the same lengths"
                )

    def _check_present(self, found: Inputs) -> None:
        """Raises ValueError if a user or an item is missing, for which training has no row."""
        for name in self.present:
            place = self.features[name]
            missing = np.flatnonzero(found.ids[place] == MISSING)
            if len(missing):
                row = int(found.lengths[place].cumsum().searchsorted(missing[0], side="right"))
                raise ValueError(
                    f"column {self.rows.sparse[place]['column'] or name!r} must have no missing values: got one in row "
                    f"{row}; leave out events and candidates without an item, and send a new text for a new user"
                )

    def _actions(self, found: Inputs, columns: Mapping[str, Any]) -> Ids:
        """The action of each event, from 1 on."""
        if ACTION not in self.features:
            return np.ones(len(found.ids[self.features[self.events[0]]]), np.int64)
        unknown = self._unknown(found, columns, ACTION, refused=(MISSING, UNSEEN))
        if unknown:
            raise ValueError(
                f"column {ACTION!r} must hold the actions of the training data: got {unknown}; send some of "
                f"{self.actions}"
            )
        actions: Ids = found.ids[self.features[ACTION]] - (FIRST - 1)
        return actions

    def _marks(self, found: Inputs, columns: Mapping[str, Any], name: str) -> Ids:
        """The ids of a mark of each candidate; a vocabulary has some for missing and unseen values."""
        asked = f"{CANDIDATES}{name}"
        unknown = self._unknown(found, columns, asked, refused=(MISSING, UNSEEN)) if self.first_ids[name] else ""
        if unknown:
            raise ValueError(
                f"column {self.rows.sparse[self.features[asked]]['column']!r} must hold values that the training data "
                f"have: got {unknown}; leave out candidates of others, because a cross has no row for them"
            )
        ids: Ids = found.ids[self.features[asked]] - self.first_ids[name]
        return ids

    def _unknown(self, found: Inputs, columns: Mapping[str, Any], name: str, *, refused: tuple[int, ...]) -> str:
        """The first value of a column that has one of the ids ``refused``, and its row; empty if there is none."""
        place = self.features[name]
        unknown = np.flatnonzero(np.isin(found.ids[place], refused))
        if not len(unknown):
            return ""
        row = int(found.lengths[place].cumsum().searchsorted(unknown[0], side="right"))
        value = columns[self.rows.sparse[place]["column"]][row][int(unknown[0] - found.lengths[place][:row].sum())]
        value = value.as_py() if isinstance(value, pa.Scalar) else value
        return f"{value!r:.60} in row {row}"

    def _kept(self, actions: Ids, counts: Ids, owners: Ids) -> npt.NDArray[np.bool_]:
        """Which events a history keeps, (E,)."""
        until_end = counts.cumsum()[owners] - np.arange(len(owners))  # 1 for the last event of a row
        within, most, pools = self.samples["within"], self.samples["history"], self.samples["pools"]
        kept: npt.NDArray[np.bool_] = until_end <= within if within else np.ones(len(owners), bool)
        if not pools:
            kept &= until_end <= most
            return kept
        found = np.zeros_like(kept)
        for pool in pools:
            own = kept & (actions == 1 + self.actions.index(pool))
            seen = np.append(0, own.cumsum())
            to_come = seen[counts.cumsum()[owners]] - seen[:-1]  # of the pool, this event among them
            found |= own & (to_come <= most // len(pools))
        return found

    def _crossed(
        self, feature: Mapping[str, Any], found: Inputs, marks: Mapping[str, Ids], *, now: Ids, asking: Ids
    ) -> Ids:
        """The ids of a cross, as ``datasets.sequences.collate`` computes them."""
        key = np.zeros(len(asking), np.uint64)
        for part in self.crosses[feature["name"]]:
            if part == "hour":
                ids = (now // _HOUR_S % 24)[asking]
            elif part in self.events:
                ids = found.ids[self.features[f"{CANDIDATES}{part}"]]
            elif part in marks:
                ids = marks[part]
            else:
                ids = found.ids[self.features[part]][asking]
            key = finalised(key + (ids.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        crossed: Ids = 1 + (key % np.uint64(feature["rows"] - 1)).astype(np.int64)
        return crossed


def _spans(firsts: Ids, counts: Ids) -> Ids:
    """The numbers ``first`` .. ``first + count - 1`` of each pair, one after the other."""
    numbers: Ids = np.arange(counts.sum()) + np.repeat(firsts - (counts.cumsum() - counts), counts)
    return numbers


def _of_candidates(feature: Mapping[str, Any]) -> dict[str, Any]:
    """The same feature of the events that are to be predicted."""
    column = feature["column"] or feature["name"]
    return dict(feature) | {"name": f"{CANDIDATES}{feature['name']}", "column": f"{CANDIDATES}{column}"}


def _check_histories(num_events: Ids, counts: Ids) -> None:
    """Raises ValueError if a row has no event that the model reads; ``counts`` are all that were sent."""
    if not num_events.all():
        row = int(np.flatnonzero(num_events == 0)[0])
        found = f"only items that training has not seen, {counts[row]} of them," if counts[row] else "none"
        raise ValueError(
            f"a row must have an event from which the next item follows: got {found} in row {row}; leave out users "
            "without a history"
        )


def _check_order(happened: Ids, owners: Ids, now: Ids) -> None:
    descends = np.flatnonzero((happened[1:] < happened[:-1]) & (owners[1:] == owners[:-1]))
    if len(descends):
        place = descends[0]
        raise ValueError(
            f"column {TIME!r} must ascend within a row: got {happened[place + 1]} after {happened[place]} in row "
            f"{owners[place]}; sort the events of each user"
        )
    late = np.flatnonzero(happened > now[owners])
    if len(late):
        raise ValueError(
            f"column {ASKED!r} must not be before the events of its row: got {now[owners[late[0]]]} after "
            f"{happened[late[0]]} in row {owners[late[0]]}; leave out later events"
        )
