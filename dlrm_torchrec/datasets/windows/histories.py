"""Windows of time of histories: the candidates of a window have the events before them, also those of the window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256

import numpy as np

from dlrm_torchrec.datasets.open import SYNTHETIC, held_out_batch, load_spec
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.log import EventLog, Ints, history_of
from dlrm_torchrec.datasets.sequences.open import open_log
from dlrm_torchrec.datasets.sequences.order import batches, weights_of
from dlrm_torchrec.datasets.sequences.samples import Samples, find_samples, together
from dlrm_torchrec.datasets.sequences.samples import Window as Times
from dlrm_torchrec.datasets.sequences.stream import SequenceStream
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.summary import Summary, summarise
from dlrm_torchrec.datasets.windows.by_time import DAY_MICROSECONDS, iso, name_of
from dlrm_torchrec.datasets.windows.config import SequenceWindowsConfig
from dlrm_torchrec.schema import DatasetSpec

_ALWAYS = Times(-(1 << 62), 1 << 62)
_EVALUATION_SAMPLES = 256  # of a batch, at least: an evaluation does not need small batches


@dataclass(frozen=True, kw_only=True)
class SequenceWindow:
    """The samples of one window, and what tells its events from those of any other; see ``windows.window.Window``."""

    name: str
    day: float  # when it begins, in days; only differences mean something
    digest: str  # equal only for the same events, at the same times after the beginning of the window
    spec: DatasetSpec
    samples: Samples
    config: SamplesConfig
    folder: str  # the prepared folder with the vocabularies, or 'synthetic'
    until: str  # when it ends, in ISO 8601; empty means that nobody knows
    best_auc: Callable[[], float] | None  # which no model can expect to exceed; None where nobody knows it

    def steps(self, batch_size: int, *, epochs: int) -> int:
        """The global batches of so many epochs."""
        return epochs * batches(weights_of(self.samples.tokens(), batch_by=self.config.batch_by), batch_size)

    def train(self, ranks: Ranks, *, epochs: int, seed: int) -> SequenceStream:
        """The samples ``epochs`` times, in a seeded order or by time."""
        return self._open(ranks, shuffle=self.config.shuffle, epochs=epochs, seed=seed)

    def evaluation(self, ranks: Ranks) -> SequenceStream:
        """The same samples once, by time, in batches that are large enough to be quick."""
        large = replace(ranks, global_batch_size=held_out_batch(ranks, least=_EVALUATION_SAMPLES))
        return self._open(large, shuffle=False, epochs=1, seed=0)

    def _open(self, ranks: Ranks, *, shuffle: bool, epochs: int, seed: int) -> SequenceStream:
        by = self.config.batch_by
        return SequenceStream(self.spec, self.samples, ranks, batch_by=by, shuffle=shuffle, epochs=epochs, seed=seed)


def sequence_windows(
    data: str, shape: DatasetSpec, samples: SamplesConfig, config: SequenceWindowsConfig, *, users: int, seed: int
) -> tuple[DatasetSpec, list[SequenceWindow]]:
    """The spec of the samples, and a window for each span of time that has candidates, from the earliest on.

    Window k has the candidates whose time is in [k, k + 1) x ``config.length`` since 1970. The splits of a prepared
    folder do not matter. Raises ValueError when samples are not cut by time, when there are none, or when there is no
    window ``config.since``.

    Args:
        data: a prepared folder of histories, or 'synthetic' for users of the spec ``shape`` with changing interests
        shape: of synthetic users
        samples: how histories are cut
        config: how long windows are, which is the first, and the number of synthetic days
        users: the number of synthetic users
        seed: of synthetic users
    """
    if samples.held_out != "time":
        raise ValueError(
            f"samples of windows must be held out by time: got {samples.held_out!r}; leave out samples.held_out"
        )
    spec = samples.of(load_spec(data, shape))
    history = history_of(spec)
    log, interests = open_log(data, spec, users=users, seed=seed)
    every = find_samples(log, history, samples, split="train", window=_ALWAYS)
    length_s = config.microseconds // 1_000_000
    digests = {number: _digest(log, events, number * length_s) for number, events in _by_window(log, None, length_s)}
    windows = []
    for number, candidates in _by_window(log, every.candidates, length_s):
        first_s = number * length_s
        own = together(log, every.rule, candidates, most=samples.candidates)
        windows.append(
            SequenceWindow(
                name=str(first_s) if history.counted else name_of(first_s * 1_000_000),
                day=first_s * 1_000_000 / DAY_MICROSECONDS,
                digest=digests[number],
                spec=spec,
                samples=own,
                config=samples,
                folder=data,
                until="" if history.counted else iso((first_s + length_s) * 1_000_000),
                best_auc=None if interests is None else partial(interests.best_auc, own),
            )
        )
    if interests is not None:
        begin = -(-int(log.times.min()) * 1_000_000 // DAY_MICROSECONDS)  # the first whole day
        windows = [window for window in windows if begin <= window.day < begin + config.days]
    names = [window.name for window in windows]
    if config.since and config.since not in names:
        raise ValueError(f"since must be the name of a window: got {config.since!r}; name one of {names}")
    return spec, windows[names.index(config.since) if config.since else 0 :]


def summarise_windows(data: str, windows: Sequence[SequenceWindow], spec: DatasetSpec) -> Summary:
    """What a run says of its data before it begins: the candidates of all ``windows``, and of how many users they are.

    Nothing is counted of synthetic histories. ``spec`` is that of the samples.
    """
    summary = replace(summarise(data, spec), spec=spec, rows={})
    if data == SYNTHETIC:
        return summary
    found = [each.samples for each in windows]
    users = {user for samples in found for user in np.unique(samples.log.user_of[samples.candidates]).tolist()}
    return replace(
        summary,
        rows={"windows": sum(len(samples.candidates) for samples in found)},
        users={"windows": len(users)},
    )


def _by_window(log: EventLog, places: Ints | None, length_s: int) -> Iterator[tuple[int, Ints]]:
    """The number of each window that has some of the events ``places``, or of all events, and these events in order."""
    numbers = (log.times if places is None else log.times[places]) // length_s
    order = np.argsort(numbers, kind="stable")
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    for own in np.split(order, cuts):
        yield int(numbers[own[0]]), own if places is None else places[own]


def _digest(log: EventLog, places: Ints, first_s: int) -> str:
    """Equal for the same events of the same users, wherever they stand in a log; ``first_s`` is when their time begins.

    Users are told by what is known of them, so that others may come between them in a log that grows.
    """
    users, counts = np.unique(log.user_of[places], return_counts=True)
    columns = [counts, log.times[places] - first_s, log.actions[places]]
    columns += [log.events[name][places] for name in sorted(log.events)]
    columns += [log.users[name][users] for name in sorted(log.users)]
    found = sha256()
    for column in columns:
        found.update(np.ascontiguousarray(column, np.int64).tobytes())
    return found.hexdigest()[:16]
