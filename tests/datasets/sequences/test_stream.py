"""Batches of sequences: what is in them, how they are cut and dealt, and that they follow from their step."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.samples import Window, find_samples
from dlrm_torchrec.datasets.sequences.stream import SequenceStream
from dlrm_torchrec.datasets.stream import Ranks
from tests.datasets.sequences.logs import (
    HISTORY,
    SPEC,
    Read,
    check_whole,
    naive_read,
    naive_samples,
    random_log,
    read_batch,
)

CONFIG = SamplesConfig(history=10, candidates=3)
ALL = Window(0, 1 << 60)
LOG = random_log(11, users=80, longest=40)
SAMPLES = find_samples(LOG, HISTORY, CONFIG, split="train", window=ALL)


def stream(
    rank: int = 0, size: int = 1, *, batch: int = 16, batch_by: str = "tokens", shuffle: bool = True, epochs: int = 2
) -> SequenceStream:
    ranks = Ranks(batch, rank, size)
    return SequenceStream(SPEC, SAMPLES, ranks, batch_by=batch_by, shuffle=shuffle, epochs=epochs, seed=5)


def in_order(reads: list[Read]) -> list[str]:
    return sorted(map(repr, reads))


@pytest.mark.parametrize("batch_by", ["tokens", "rows"])
def test_an_epoch_has_every_sample_once_as_a_plain_loop_shows_it(batch_by: str) -> None:
    expected = in_order([naive_read(LOG, sample) for sample in naive_samples(LOG, CONFIG, "train", ALL)])
    read = stream(batch_by=batch_by)
    epochs: dict[int, list[Read]] = defaultdict(list)
    for step, batch in enumerate(read.batches()):
        check_whole(batch)
        assert batch.global_rows == batch.num_rows
        epochs[step // (read.num_steps // 2)] += read_batch(batch)
    assert len(epochs) == 2
    assert in_order(epochs[0]) == in_order(epochs[1]) == expected
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("batch_by", ["tokens", "rows"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_all_numbers_of_ranks_read_the_same_global_batches(batch_by: str, *, shuffle: bool) -> None:
    whole = [read_batch(batch) for batch in stream(batch_by=batch_by, shuffle=shuffle).batches()]
    longest = int(SAMPLES.tokens().max())
    for size in (2, 4):
        shares = [list(stream(rank, size, batch_by=batch_by, shuffle=shuffle).batches()) for rank in range(size)]
        for step, together in enumerate(whole):
            parts = [rank[step] for rank in shares]
            assert in_order([read for part in parts for read in read_batch(part)]) == in_order(together)
            assert len({len(part.lengths) for part in parts}) == 1  # samples with padding
            assert {part.global_rows for part in parts} == {sum(part.num_rows for part in parts)}
            tokens = [len(part.times) for part in parts]
            assert max(tokens) - min(tokens) <= longest


def test_batches_keep_near_their_budget_of_tokens() -> None:
    tokens = SAMPLES.tokens()
    sizes = [len(batch.times) for batch in stream(epochs=1).batches()]
    budget = int(tokens.sum()) / -(-len(tokens) // 16)
    assert max(abs(size - budget) for size in sizes) <= tokens.max()
    rows = [len(batch.times) for batch in stream(epochs=1, batch_by="rows").batches()]
    assert np.std(sizes) < np.std(rows)


def test_batches_of_rows_have_equally_many_samples() -> None:
    sizes = [len(batch.lengths) for batch in stream(epochs=1, batch_by="rows").batches()]
    assert sum(sizes) == len(SAMPLES)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 16


def test_samples_that_are_not_shuffled_come_in_the_order_of_their_times() -> None:
    times = [read.times[-1] for batch in stream(shuffle=False, epochs=1).batches() for read in read_batch(batch)]
    moments = [
        read.times[-len(read.labels)]
        for batch in stream(shuffle=False, epochs=1).batches()
        for read in read_batch(batch)
    ]
    assert moments == sorted(moments)
    assert times != sorted(times)


def test_a_resumed_stream_is_the_uninterrupted_one() -> None:
    whole = list(stream(1, 2).batches())
    for start in (0, 1, len(whole) // 2 + 1, len(whole)):
        resumed = list(stream(1, 2).batches(start))
        assert len(resumed) == len(whole) - start
        for one, other in zip(whole[start:], resumed, strict=True):
            assert_equal(one, other)
    with pytest.raises(ValueError, match=r"start_step must be in \[0, \d+\], the steps of this stream"):
        stream().batches(len(whole) + 1)


def assert_equal(one: SequenceBatch, other: SequenceBatch) -> None:
    for name, part in vars(one).items():
        if isinstance(part, torch.Tensor):
            assert torch.equal(part, getattr(other, name))
    assert torch.equal(one.sparse_features.values(), other.sparse_features.values())
    assert torch.equal(one.sparse_features.lengths(), other.sparse_features.lengths())
    assert (one.num_rows, one.global_rows) == (other.num_rows, other.global_rows)


def test_crosses_are_hashes_of_the_ids_of_candidates() -> None:
    seen: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for batch in stream(epochs=1).batches():
        for read in read_batch(batch, crosses=True):
            artists, hours = read.ids["artist"][-len(read.labels) :], [t // 3600 % 24 for t in read.times]
            songs = read.ids["song"][-len(read.labels) :]
            pairs = [(read.ids["user"][0], artist) for artist in artists]
            assert read.ids["user x artist"] == [_hashed(pair, 97) for pair in pairs]
            assert read.ids["song x hour"] == [
                _hashed(pair, 89) for pair in zip(songs, hours[-len(songs) :], strict=True)
            ]
            for pair, found in zip(pairs, read.ids["user x artist"], strict=True):
                seen[found].add(pair)
    assert len(seen) > 80  # of 96 ids: the hash spreads


def _hashed(ids: tuple[int, int], rows: int) -> int:
    key = np.uint64(0)
    for part in ids:
        key = np.uint64(counter.word(key, np.uint64(part)))
    return 1 + int(key) % (rows - 1)


def test_a_batch_moves_with_all_its_parts() -> None:
    batch = next(stream(1, 4).batches())
    moved = batch.to(torch.device("cpu"))
    assert_equal(batch, moved)
    assert moved is not batch
    assert moved.sparse_features.keys() == [feature.name for feature in SPEC.sparse]
    meta = batch.to(torch.device("meta"))
    parts = {name: part.device.type for name, part in vars(meta).items() if isinstance(part, torch.Tensor)}
    assert meta.sparse_features.values().device.type == "meta"
    assert {name for name, kind in parts.items() if kind != "meta"} == {"lengths", "num_candidates"}  # for the host


def test_a_batch_has_room_for_the_longest_sample() -> None:
    small = stream(batch=1, epochs=1)
    tokens = small.samples.tokens()
    assert small.num_steps == tokens.sum() // tokens.max() < len(tokens)
    rows = [batch.num_rows for batch in small.batches()]
    assert min(rows) > 0
    assert sum(rows) == small.rows.sum()
