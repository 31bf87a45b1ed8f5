"""Cuts a log of events into windows of time, and counts what each of them has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.preparation.passes.gather import event_tables
from dlrm_torchrec.preparation.readers.events import MICROS
from dlrm_torchrec.sequence_schema import ACTION, TIME

Windows = Mapping[str, tuple[int, int]]  # by split: the first second, and the one after the last

END_S = 1 << 62  # later than all times


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How the events are cut into windows by time; without ``val``, they are not."""

    val: float = 0.1  # the latest events but for those of ``test``
    test: float = 0.0  # the latest events
    gap_s: int = 0  # seconds before each window but the first, whose events are no candidates

    def __post_init__(self) -> None:
        windowed = self.val > 0 or not (self.test or self.gap_s)
        if min(self.val, self.test, self.gap_s) < 0 or self.val + self.test >= 1 or not windowed:
            raise ValueError(
                "shares and the gap must be at least 0, sum below 1, and be 0 for test and the gap if val has none: "
                f"got {self.val}, {self.test} and {self.gap_s} s; correct them"
            )


def find_windows(times_s: NDArray[np.int64], shares: Shares) -> dict[str, tuple[int, int]]:
    """The windows that have these shares of the events, by some of their times, which ascend.

    A window is empty where too many events have the same time. Raises ValueError if all of them have.
    """
    if times_s[0] == times_s[-1]:
        raise ValueError(
            f"times must differ to hold out the latest events: got {times_s[0]} s for all of them; name another column "
            "of the time, or prepare with --val_share 0 and train with --samples.held_out last"
        )
    found, end = {}, END_S
    for name, share in (("test", shares.test), ("val", shares.val)):
        if share:
            later = (shares.test if name == "val" else 0.0) + share
            place = int(np.ceil((1 - later) * len(times_s)))
            first = int(times_s[min(place, len(times_s) - 1)])  # the latest event at least
            found[name] = (first, end)
            end = first - shares.gap_s
    found["train"] = (min(int(times_s[0]), end), end)
    return {name: found[name] for name in ("train", "val", "test") if name in found}


def count_windows(
    events: Manifest, folder: str, windows: Windows, positive: Sequence[int]
) -> dict[str, dict[str, int]]:
    """The number of ``events`` of each window, and of ``positives``, those with an action of the ids ``positive``.

    Without such ids, positives are left out. ``folder`` has the prepared events.
    """
    found = {name: dict.fromkeys(("events", "positives") if positive else ("events",), 0) for name in windows}
    for table in event_tables(events, folder, [TIME, ACTION] if positive else [TIME]):
        times_s = table[TIME].to_numpy() // MICROS
        for name, (first, end) in windows.items():
            inside = (times_s >= first) & (times_s < end)
            found[name]["events"] += int(inside.sum())
            if positive:
                found[name]["positives"] += int(np.isin(table[ACTION].to_numpy()[inside], positive).sum())
    return found


def check_windows(counts: Mapping[str, Mapping[str, int]], shares: Shares) -> None:
    """Raises ValueError if a window has no events."""
    empty = [name for name, count in counts.items() if not count["events"]]
    if empty:
        cure = "lower the shares or the gap" if empty[0] == "train" else "raise its share or lower the gap"
        raise ValueError(
            f"window {empty[0]!r} must have events: got none with shares {shares.val} and {shares.test} and a gap of "
            f"{shares.gap_s} s; {cure}, or look at the column of times, of which many may be equal"
        )
