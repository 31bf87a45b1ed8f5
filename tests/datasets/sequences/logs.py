"""Random logs of events, and what samples and batches must be by a plain loop over their events."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.log import EventLog
from dlrm_torchrec.datasets.sequences.samples import LAST, Window
from dlrm_torchrec.schema import Cross, DatasetSpec, History, SparseFeature

HISTORY = History(
    events=("song", "artist"),
    actions=("skip", "listen", "like"),
    positive=("listen", "like"),
    crosses=(Cross(name="user x artist", of=("user", "artist")), Cross(name="song x hour", of=("song", "hour"))),
)
SPEC = DatasetSpec(
    name="songs",
    label="listen",
    dense=(),
    sparse=(
        SparseFeature(name="user", rows=1000),
        SparseFeature(name="song", rows=50, multi_hot=True),
        SparseFeature(name="user x artist", rows=97, encoding="hash", multi_hot=True),
        SparseFeature(name="artist", rows=9, multi_hot=True),
        SparseFeature(name="song x hour", rows=89, encoding="hash", multi_hot=True),
        SparseFeature(name="country", rows=7),
    ),
    history=HISTORY,
)
USER_FEATURES, EVENT_FEATURES = ("user", "country"), ("song", "artist")


def random_log(seed: int, users: int = 30, longest: int = 25, span_s: int = 400) -> EventLog:
    """Some users have no event, and many events of a user have equal times."""
    random = np.random.default_rng(seed)
    counts = random.integers(0, longest + 1, users)
    starts = np.concatenate([[0], np.cumsum(counts)])
    total = int(starts[-1])
    times = [np.sort(random.integers(0, span_s, count)) for count in counts]
    return EventLog(
        starts=starts,
        times=np.concatenate(times) if total else np.empty(0, np.int64),
        actions=random.integers(1, 4, total).astype(np.uint8),
        events={
            "song": random.integers(0, 50, total).astype(np.int32),
            "artist": random.integers(0, 9, total).astype(np.int32),
        },
        users={"user": np.arange(users, dtype=np.int32), "country": random.integers(0, 7, users).astype(np.int32)},
    )


class Sample(NamedTuple):
    """The places of events in the log."""

    history: tuple[int, ...]
    candidates: tuple[int, ...]


def naive_samples(log: EventLog, config: SamplesConfig, split: str, window: Window | None) -> list[Sample]:
    """What ``find_samples`` must find."""
    found = []
    for user in range(log.num_users):
        first, end = int(log.starts[user]), int(log.starts[user + 1])
        candidates = []
        for place in range(first, end):
            name = HISTORY.actions[log.actions[place] - 1]
            if config.held_out == "last":
                wanted = end - first >= 3 and place == end - LAST[split]
            else:
                assert window is not None
                wanted = window.first <= log.times[place] < window.end
                wanted = wanted and (not config.anchors or name in config.anchors)
            if wanted and place - first >= config.least:
                candidates.append(place)
        for i in range(0, len(candidates), config.candidates):
            group = tuple(candidates[i : i + config.candidates])
            looked_at = list(range(first, group[0]))
            if config.within:
                looked_at = looked_at[-config.within :]
            if config.pools:
                kept: list[int] = []
                for pool in config.pools:
                    own = [place for place in looked_at if HISTORY.actions[log.actions[place] - 1] == pool]
                    kept += own[-(config.history // len(config.pools)) :]
                looked_at = sorted(kept)
            else:
                looked_at = looked_at[-config.history :]
            found.append(Sample(tuple(looked_at), group))
    return found


class Read(NamedTuple):
    """One sample as a batch shows it."""

    ids: dict[str, list[int]]
    times: list[int]
    actions: list[int]
    labels: list[float]


def naive_read(log: EventLog, sample: Sample) -> Read:
    """How a batch must show a sample, but for its crosses."""
    places = [*sample.history, *sample.candidates]
    user = int(np.searchsorted(log.starts, sample.candidates[0], side="right")) - 1
    ids = {name: [int(log.events[name][place]) for place in places] for name in EVENT_FEATURES}
    ids |= {name: [int(log.users[name][user])] for name in USER_FEATURES}
    return Read(
        ids=ids,
        times=[int(log.times[place]) for place in places],
        actions=[int(log.actions[place]) for place in sample.history] + [0] * len(sample.candidates),
        labels=[float(log.actions[place] in (2, 3)) for place in sample.candidates],
    )


def read_batch(batch: SequenceBatch, *, crosses: bool = False) -> list[Read]:
    """The samples of a batch, without padding."""
    found = []
    lengths, counts = batch.lengths.tolist(), batch.num_candidates.tolist()
    times, actions = (part.split(lengths) for part in (batch.times, batch.actions))
    labels = batch.labels.split(counts)
    bags: dict[str, Any] = {name: bag.to_dense() for name, bag in batch.sparse_features.to_dict().items()}
    for i, length in enumerate(lengths):
        if length:
            names = [*EVENT_FEATURES, *USER_FEATURES, *(HISTORY.cross_names if crosses else [])]
            ids = {name: bags[name][i].tolist() for name in names}
            found.append(Read(ids, times[i].tolist(), actions[i].tolist(), labels[i].tolist()))
        else:
            assert counts[i] == 0
            assert all(len(bag[i]) == 0 for bag in bags.values())
    return found


def check_whole(batch: SequenceBatch) -> None:
    """The parts of a batch have sizes that fit."""
    assert batch.times.shape == batch.actions.shape == (int(batch.lengths.sum()),)
    assert batch.labels.shape == (batch.num_rows,) == (int(batch.num_candidates.sum()),)
    assert batch.sparse_features.stride() == len(batch.lengths) == len(batch.num_candidates)
    assert {part.dtype for part in (batch.times, batch.actions, batch.lengths, batch.num_candidates)} == {torch.int64}
