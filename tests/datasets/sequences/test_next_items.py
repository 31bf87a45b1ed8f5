"""Batches for next items: which rows they have, and that the drawn items follow from the step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.next_items import NextItemStream, next_item_spec
from dlrm_torchrec.datasets.sequences.open import open_next_items, summarise_next_items
from dlrm_torchrec.datasets.sequences.samples import Window, find_samples
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.specs import browsing_spec
from tests.datasets.sequences.logs import HISTORY, SPEC, naive_read, naive_samples, random_log
from tests.datasets.sequences.test_stored import WINDOWS, write_log

LOG = random_log(5, users=90)
ITEMS = next_item_spec(SPEC)


def stream(rank: int = 0, size: int = 1, *, training: bool = True, draws: int = 20) -> NextItemStream:
    samples = find_samples(LOG, HISTORY, SamplesConfig(history=9, held_out="last"), split="train")
    return NextItemStream(
        ITEMS, samples, Ranks(16, rank, size), training=training, draws=draws, batch_by="rows", shuffle=True, epochs=2,
        seed=3,
    )  # fmt: skip


def test_the_spec_has_the_item_twice_in_one_table_and_nothing_else() -> None:
    assert [feature.name for feature in ITEMS.sparse] == ["song", "song drawn"]
    (table,) = ITEMS.tables(dim=4)
    assert (table.rows, table.features) == (50, ("song", "song drawn"))
    assert next_item_spec(ITEMS) == ITEMS


@pytest.mark.parametrize("training", [True, False])
def test_rows_are_all_events_but_the_first_or_the_candidates(*, training: bool) -> None:
    for step, batch in enumerate(stream(training=training).batches()):
        expected = (batch.lengths - 1 if training else batch.num_candidates).sum()
        parts = [next(stream(rank, 2, training=training).batches(step)) for rank in range(2)]
        assert batch.num_rows == batch.global_rows == expected == sum(part.num_rows for part in parts)
        assert {part.global_rows for part in parts} == {batch.global_rows}
        assert batch.labels.tolist() == [1.0] * batch.num_rows
        assert len(batch.sparse_features["song"].values()) == len(batch.times)


def test_drawn_items_are_those_of_the_step_on_every_rank_and_spread_over_all() -> None:
    whole = [batch.sparse_features["song drawn"].values() for batch in stream().batches()]
    for step, drawn in enumerate(whole):
        assert len(drawn) == 20
        for rank in range(2):
            share = next(stream(rank, 2).batches(step)).sparse_features["song drawn"]
            assert torch.equal(share.values(), drawn)
            assert share.lengths()[0] == 20
    counts = torch.cat(whole).bincount(minlength=50)
    assert len(counts) == 50
    assert int(counts.max()) < 4 * 20 * len(whole) / 50
    assert not torch.equal(whole[0], whole[1])


def test_all_items_are_those_that_have_a_value_of_their_own() -> None:
    for told in (stream(training=False), stream(draws=0)):
        assert next(told.batches()).sparse_features["song drawn"].values().tolist() == list(range(50))
    spec = browsing_spec(items=68)
    streams = open_next_items(
        "synthetic", next_item_spec(spec), Ranks(8, 0, 1), SamplesConfig(held_out="last"), draws=5, users=20,
        epochs=1, seed=0,
    )  # fmt: skip
    assert [len(each.samples) for each in streams.values()] == [20] * 3
    moments = np.stack([streams[split].samples.moments for split in ("train", "val", "test")])
    assert (np.diff(moments, axis=0) == 1).all()
    with pytest.raises(ValueError, match="samples of next items must have one candidate: got 2; set it to 1"):
        open_next_items(
            "synthetic", next_item_spec(spec), Ranks(8, 0, 1), SamplesConfig(candidates=2), draws=5, users=20,
            epochs=1, seed=0,
        )  # fmt: skip


@pytest.mark.parametrize("held_out", ["time", "last"])
def test_items_without_an_id_of_their_own_are_not_told(tmp_path: Path, held_out: Literal["time", "last"]) -> None:
    sparse = tuple(replace(each, encoding="vocab" if each.name == "song" else "id") for each in SPEC.sparse)
    spec, config = replace(SPEC, sparse=sparse), SamplesConfig(history=9, held_out=held_out, batch_by="rows")
    songs = np.where(np.arange(len(LOG)) % 3 == 0, 1, LOG.events["song"]).astype(np.int32)
    log = replace(LOG, events={**LOG.events, "song": songs})
    manifest = write_log(tmp_path / "data", log)
    windows = WINDOWS if held_out == "time" else {}
    replace(manifest, spec=spec, windows=windows).save(str(tmp_path / "data"))
    summary = summarise_next_items(str(tmp_path / "data"), spec, config)
    streams = open_next_items(
        str(tmp_path / "data"), summary.spec, Ranks(8, 0, 1), config, draws=0, users=0, epochs=1, seed=0
    )

    known = log.of(songs > 1)
    assert [*np.diff(known.starts)] == [
        (songs[first:end] > 1).sum() for first, end in zip(log.starts[:-1], log.starts[1:], strict=True)
    ]
    for split, each in streams.items():
        window = Window(*WINDOWS[split]) if windows else None
        naive = [*map(partial(naive_read, known), naive_samples(known, config, split, window))]
        if split != "train":  # only items that are new to the user are judged
            naive = [read for read in naive if read.ids["song"][-1] not in read.ids["song"][:-1]]
        found = [read for batch in each.batches() for read in read_songs(batch)]
        assert sorted(found) == sorted((read.ids["song"], read.times) for read in naive)
        assert min(min(ids) for ids, _ in found) > 1
        assert summary.rows[split] == sum(len(ids) - 1 if split == "train" else 1 for ids, _ in found) > 20


def test_a_split_of_nothing_but_repeats_is_refused(tmp_path: Path) -> None:
    log = replace(LOG, events={**LOG.events, "song": np.full(len(LOG), 7, np.int32)})
    replace(write_log(tmp_path / "data", log), windows={}).save(str(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"split 'val' must have next items that are new to their users: got \d+ that"):
        summarise_next_items(str(tmp_path / "data"), SPEC, SamplesConfig(history=9, held_out="last"))


def read_songs(batch: SequenceBatch) -> list[tuple[list[int], list[int]]]:
    """The songs and the times of each sample."""
    lengths = batch.lengths.tolist()
    songs = batch.sparse_features["song"].values().split(lengths)
    return [
        (ids.tolist(), times.tolist()) for ids, times in zip(songs, batch.times.split(lengths), strict=True) if len(ids)
    ]
