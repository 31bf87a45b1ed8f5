"""Makes one SequenceBatch of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.sequences.log import EventLog, Ints, history_of
from dlrm_torchrec.datasets.sequences.samples import Samples, labels_of
from dlrm_torchrec.schema import Cross, DatasetSpec
from dlrm_torchrec.sequence_schema import HOUR

_HOUR_S = 3600


@dataclass(frozen=True)
class Collation:
    """How samples of one log become batches."""

    spec: DatasetSpec
    samples: Samples
    pin_memory: bool = False

    def batch(self, which: Ints, *, padded_rows: int, global_rows: int) -> SequenceBatch:
        """The samples ``which`` and then padding, ``padded_rows`` together; ``global_rows`` counts candidates."""
        samples, log, history = self.samples, self.samples.log, history_of(self.spec)
        events, before = samples.history(which)
        counts = np.diff(samples.bounds)[which]
        asked = samples.candidates[spans(samples.bounds[which], counts)]
        tokens = before + counts
        is_candidate = np.repeat(np.tile([False, True], len(which)), np.stack([before, counts], axis=1).reshape(-1))
        places = np.empty(len(is_candidate), np.int64)
        places[~is_candidate], places[is_candidate] = events, asked
        users = log.user_of[samples.moments[which]]

        padding = np.zeros(padded_rows - len(which), np.int64)
        counts, tokens = np.append(counts, padding), np.append(tokens, padding)
        crosses = {cross.name: cross for cross in history.crosses}
        values: list[NDArray[Any]] = []
        lengths: list[Ints] = []
        for feature in self.spec.sparse:
            if feature.name in history.events:
                values.append(log.events[feature.name][places])
                lengths.append(tokens)
            elif feature.name in crosses:
                values.append(self._crossed(crosses[feature.name], feature.rows, asked))
                lengths.append(counts)
            else:
                values.append(log.users[feature.name][users])
                lengths.append(np.append(np.ones(len(which), np.int64), padding))
        return SequenceBatch(
            sparse_features=KeyedJaggedTensor(
                keys=[feature.name for feature in self.spec.sparse],
                values=self._tensor(np.concatenate(values), np.int64),
                lengths=self._tensor(np.concatenate(lengths), np.int32),
                stride=padded_rows,
                length_per_key=[len(each) for each in values],
            ),
            times=self._tensor(log.times[places], np.int64),
            actions=self._tensor(np.where(is_candidate, 0, log.actions[places]), np.int64),
            lengths=self._tensor(tokens, np.int64),
            num_candidates=self._tensor(counts, np.int64),
            users=self._tensor(np.append(users, padding), np.int64),
            labels=self._tensor(labels_of(log.actions[asked], history), np.float32),
            num_rows=len(asked),
            global_rows=global_rows,
        )

    def _crossed(self, cross: Cross, rows: int, asked: Ints) -> Ints:
        """The ids of a cross for some candidates: hashes of the ids of its parts, in [1, rows)."""
        crossed: Ints = 1 + (hashes(cross, self.samples.log, asked) % np.uint64(rows - 1)).astype(np.int64)
        return crossed

    def _tensor(self, values: NDArray[Any], kind: type[np.generic]) -> torch.Tensor:
        tensor = torch.from_numpy(values.astype(kind, copy=False))
        return tensor.pin_memory() if self.pin_memory else tensor


def hashes(cross: Cross, log: EventLog, places: Ints) -> counter.Words:
    """64 bits of the ids of a cross's parts together, for each of some events."""
    found = np.zeros(len(places), np.uint64)
    for part in cross.of:
        if part == HOUR:
            ids = log.times[places] // _HOUR_S % 24
        elif part in log.events:
            ids = log.events[part][places]
        else:
            ids = log.users[part][log.user_of[places]]
        found = counter.words(found, ids)
    return found


def spans(firsts: Ints, counts: Ints) -> Ints:
    """The numbers ``first`` .. ``first + count - 1`` of each pair, one after the other."""
    places = np.arange(counts.sum())
    numbers: Ints = places + np.repeat(firsts - (np.cumsum(counts) - counts), counts)
    return numbers
