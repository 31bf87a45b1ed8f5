"""GAUC by user of a stream of sequences, on any ranks, against a loop over users."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.samples import Window, find_samples, labels_of
from dlrm_torchrec.datasets.sequences.stream import SequenceStream
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.train.metrics.candidates import evaluate
from dlrm_torchrec.train.task import CandidateTask
from tests.datasets.sequences.logs import HISTORY, SPEC, random_log
from tests.distributed import here, run_ranks

LOG = random_log(2, users=60)
SAMPLES = find_samples(LOG, HISTORY, SamplesConfig(candidates=3), split="val", window=Window(0, 1 << 60))


class Guess(nn.Module):
    """A logit for each candidate that depends on its song and its time alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: Any) -> torch.Tensor:
        histories = batch.lengths - batch.num_candidates
        kinds = torch.stack([histories, batch.num_candidates], 1).flatten()
        is_candidate = torch.tensor([False, True]).repeat(len(histories)).repeat_interleave(kinds)
        songs = batch.sparse_features["song"].values()[is_candidate]
        return self.weight * guesses(songs, batch.times[is_candidate])[:, None]


def guesses(songs: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    return (songs * 7 % 11 + times % 5).float() - 6


def metrics() -> dict[str, float]:
    world = here()
    stream = SequenceStream(SPEC, SAMPLES, Ranks(8, world.rank, world.size), batch_by="tokens", shuffle=False)
    return evaluate(CandidateTask(Guess(), world.size), stream.batches(), world, learned=False)


def test_gauc_is_the_mean_of_the_users_aucs_by_their_candidates() -> None:
    candidates = SAMPLES.candidates
    songs, times = (torch.from_numpy(part[candidates].astype(np.int64)) for part in (LOG.events["song"], LOG.times))
    labels, logits = labels_of(LOG.actions[candidates], HISTORY), guesses(songs, times).numpy()
    rows: dict[int, list[int]] = defaultdict(list)
    for row, user in enumerate(LOG.user_of[candidates]):
        rows[user].append(row)
    total, weight = 0.0, 0
    for own in rows.values():
        positive, negative = (logits[own][labels[own] == label] for label in (1, 0))
        if len(positive) and len(negative):
            difference = positive[:, None] - negative[None]
            total += len(own) * float(((difference > 0) + (difference == 0) / 2).mean())
            weight += len(own)
    assert 0 < weight < len(candidates)
    for size in (1, 2):
        for found in run_ranks(size, metrics):
            assert found["gauc"] == pytest.approx(total / weight)
            assert found["gauc_share"] == pytest.approx(weight / len(candidates))
            assert found["samples"] == len(candidates)
