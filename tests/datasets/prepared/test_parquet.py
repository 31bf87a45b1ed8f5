"""The Parquet stream: every row once per epoch, the same global batches on any number of ranks, resumable anywhere."""

import itertools
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlrm_torchrec.datasets.ahead import BATCHES_AHEAD
from dlrm_torchrec.datasets.block import Block, joined
from dlrm_torchrec.datasets.prepared import parquet
from dlrm_torchrec.datasets.prepared.parquet import ParquetStream
from tests.datasets.batches import Row, rows_of
from tests.datasets.prepared_files import reference_rows, write_folder

LAYOUTS = {
    "one group": [[40]],
    "1 and 7 groups": [[61], [5, 9, 1, 17, 3, 20, 6]],
    "groups smaller than a batch": [[2, 3, 1, 2, 2, 1, 1, 3], [1] * 9],
    "a file without rows": [[10], [], [13]],
    "one row": [[1]],
    "fewer rows than ranks": [[2]],
    "a last batch of one row": [[12], [13]],
    "nearly equal lanes": [[24], [24], [3]],
}


def stream(
    folder: Path,
    *,
    batch: int = 12,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 5,
    shuffle: bool = True,
    epochs: int = 1,
    lanes: int | None = None,
) -> ParquetStream:
    return ParquetStream(
        str(folder),
        "train",
        global_batch_size=batch,
        rank=rank,
        world_size=world_size,
        seed=seed,
        shuffle=shuffle,
        epochs=epochs,
        lanes=lanes,
    )


def global_batches(folder: Path, world_size: int, **options: Any) -> list[list[Row]]:
    """Per step the rows of all ranks in rank order, after a check of the padding contract."""
    shares = [list(stream(folder, rank=rank, world_size=world_size, **options).batches()) for rank in range(world_size)]
    steps = []
    for batches in zip(*shares, strict=True):
        global_rows = sum(batch.num_rows for batch in batches)
        padded = -(-global_rows // world_size)
        for batch in batches:
            assert batch.global_rows == global_rows
            assert batch.dense_features.shape == (padded, 2)
            assert batch.labels.shape == (padded,)
            assert batch.sparse_features.stride() == padded
            assert batch.dense_features[batch.num_rows :].abs().sum() == 0
        steps.append(rows_of(batches))
    return steps


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_once_and_the_same_batches_on_any_number_of_ranks(
    tmp_path: Path, layout: str, lanes: int, shuffle: bool
) -> None:
    expected = reference_rows(write_folder(tmp_path, LAYOUTS[layout]))
    alone = global_batches(tmp_path, 1, lanes=lanes, shuffle=shuffle)
    assert Counter(itertools.chain(*alone)) == Counter(expected)
    assert [len(rows) for rows in alone[:-1]] == [12] * (len(alone) - 1)
    assert len(alone) == stream(tmp_path).num_steps
    for world_size in (2, 3, 4):
        assert global_batches(tmp_path, world_size, lanes=lanes, shuffle=shuffle) == alone


def test_without_shuffling_one_lane_reads_the_files_in_order(tmp_path: Path) -> None:
    expected = reference_rows(write_folder(tmp_path, LAYOUTS["1 and 7 groups"]))
    steps = global_batches(tmp_path, 2, lanes=1, shuffle=False)
    assert list(itertools.chain(*steps)) == expected


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=3).filter(
        lambda files: sum(map(sum, files)) > 0
    ),
    lanes=st.sampled_from([1, 2, 3, 4, 6]),
    world_size=st.sampled_from([2, 3, 4, 6, 12]),
)
def test_any_layout_lanes_and_ranks(tmp_path: Path, files: list[list[int]], lanes: int, world_size: int) -> None:
    expected = reference_rows(write_folder(tmp_path, files))
    alone = global_batches(tmp_path, 1, lanes=lanes, epochs=2)
    assert Counter(itertools.chain(*alone)) == Counter(expected * 2)
    assert global_batches(tmp_path, world_size, lanes=lanes, epochs=2) == alone


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rank", [0, 1])
def test_batches_from_any_step_are_the_tail(tmp_path: Path, layout: str, rank: int) -> None:
    write_folder(tmp_path, LAYOUTS[layout])
    options: dict[str, Any] = {"rank": rank, "world_size": 2, "epochs": 3}
    everything = list(stream(tmp_path, **options).batches())
    for start in range(len(everything) + 1):
        tail = list(stream(tmp_path, **options).batches(start))
        assert len(tail) == len(everything) - start
        for batch, expected in zip(tail, everything[start:], strict=True):
            assert rows_of([batch]) == rows_of([expected])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_every_row_once_per_epoch_with_a_resume_on_other_ranks(
    tmp_path: Path, before: int, after: int, shuffle: bool
) -> None:
    expected = Counter(reference_rows(write_folder(tmp_path, [[61], [5, 9, 1, 17, 3, 20, 6]])))  # 11 steps per epoch
    for stop in (1, 6, 11, 17, 21):
        rows: list[Counter[Row]] = [Counter(), Counter()]
        for world_size, steps in ((before, range(stop)), (after, range(stop, 22))):
            for rank in range(world_size):
                part = stream(tmp_path, rank=rank, world_size=world_size, lanes=before, shuffle=shuffle, epochs=2)
                batches = part.batches(steps.start)
                for step, batch in zip(steps, batches, strict=False):
                    rows[step // 11].update(rows_of([batch]))
        assert rows == [expected, expected]


def test_epochs_are_shuffled_differently_and_repeatably(tmp_path: Path) -> None:
    expected = Counter(reference_rows(write_folder(tmp_path, [[30, 30], [24]])))
    rows = [row for batch in stream(tmp_path, epochs=3).batches() for row in rows_of([batch])]
    epochs = [rows[:84], rows[84:168], rows[168:]]
    assert all(Counter(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    again = [row for batch in stream(tmp_path, epochs=3).batches() for row in rows_of([batch])]
    assert again == rows
    other = [row for batch in stream(tmp_path, epochs=3, seed=6).batches() for row in rows_of([batch])]
    assert Counter(other) == Counter(rows)
    assert other != rows


def test_shuffling_mixes_the_rows_of_several_row_groups_anew_in_each_epoch(tmp_path: Path) -> None:
    write_folder(tmp_path, [[48] * 12])
    batches = list(stream(tmp_path, batch=48, epochs=2).batches())
    users = np.array([[row[2][0][0] for row in rows_of([batch])] for batch in batches])
    groups = users.reshape(2, 12, 4, 12) // 48  # by epoch, batch, and part of the batch
    assert (groups == groups[..., :1]).all()  # each part of a batch comes from a row group,
    assert all(len(set(batch)) == 4 for batch in groups[..., 0].reshape(24, 4))  # of which there are four;
    orders = [list(dict.fromkeys(epoch[..., 0].ravel().tolist())) for epoch in groups]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))
    assert list(range(12)) != orders[0] != orders[1]
    within = [tuple(row % 48 for row in epoch.ravel() if row // 48 == 5) for epoch in users.reshape(2, -1)]
    assert sorted(within[0]) == sorted(within[1]) == list(range(48))
    assert list(range(48)) != list(within[0]) != list(within[1])  # and its rows are in an order of their own


Decoded = list[weakref.ref[Block]]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """Grows by one weak reference with every row group that is decoded."""
    blocks: Decoded = []

    def record(*args: Any) -> Block:
        result = joined(*args)
        blocks.append(weakref.ref(result))
        return result

    monkeypatch.setattr(parquet, "joined", record)
    return blocks


@pytest.mark.parametrize("shuffle", [False, True])
def test_each_rank_decodes_about_its_own_rows_only(tmp_path: Path, decoded: Decoded, shuffle: bool) -> None:
    write_folder(tmp_path, [[64], [8] * 8])
    options: dict[str, Any] = {"world_size": 2, "shuffle": shuffle}
    shares = [sum(batch.num_rows for batch in stream(tmp_path, rank=rank, **options).batches()) for rank in (0, 1)]
    assert shares == [64, 64]
    assert len(decoded) <= 9 + 1 + 3 * shuffle  # nine row groups, of which a few lie across the ends of tracks


def test_row_groups_that_several_tracks_share_are_decoded_once(tmp_path: Path, decoded: Decoded) -> None:
    write_folder(tmp_path, [[40]])
    assert sum(batch.num_rows for batch in stream(tmp_path).batches()) == 40
    assert len(decoded) == 1


@pytest.mark.parametrize(("shuffle", "in_use"), [(False, 1), (True, 4)])
def test_row_groups_are_decoded_ahead_and_released_when_read(
    tmp_path: Path, decoded: Decoded, shuffle: bool, in_use: int
) -> None:
    write_folder(tmp_path, [[24] * 40])
    batches = stream(tmp_path, shuffle=shuffle).batches()
    for taken in range(1, 81):
        next(batches)
        made = min(taken + BATCHES_AHEAD, 80)
        reached = in_use * -(-made * 12 // (24 * in_use))  # row groups that these batches touch
        expected = min(reached + parquet.ROW_GROUPS_AHEAD, 40)
        deadline = time.monotonic() + 60
        while len(decoded) < expected and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(decoded) == expected
        # Those in use, those ahead, and those that the threads may not have let go of yet.
        assert sum(block() is not None for block in decoded) <= 2 * in_use + parquet.ROW_GROUPS_AHEAD + 1


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(("ahead", "decode", "open"))]


def test_the_threads_end_with_the_stream_and_with_its_abandonment(tmp_path: Path) -> None:
    write_folder(tmp_path, [[24] * 10])
    batches = stream(tmp_path).batches()
    assert not reading_threads()
    next(batches)
    assert reading_threads()
    del batches
    assert not reading_threads()
    for _ in stream(tmp_path).batches():
        pass
    assert not reading_threads()


def test_two_passes_may_run_side_by_side(tmp_path: Path) -> None:
    expected = reference_rows(write_folder(tmp_path, [[30], [30]]))
    one = stream(tmp_path)
    for left, right in zip(one.batches(), one.batches(), strict=True):
        assert rows_of([left]) == rows_of([right])
    assert Counter(row for batch in one.batches() for row in rows_of([batch])) == Counter(expected)


def test_the_batch_has_the_types_of_its_contract(tmp_path: Path) -> None:
    write_folder(tmp_path, [[12]])
    batch = next(stream(tmp_path).batches())
    assert batch.dense_features.dtype == batch.labels.dtype == torch.float32
    assert batch.sparse_features.keys() == ["user", "history", "shop"]
    assert batch.sparse_features.values().dtype == torch.int64
    assert batch.sparse_features.lengths().dtype == torch.int32
    lengths = batch.sparse_features.lengths().view(3, -1).sum(1)
    assert batch.sparse_features.length_per_key_or_none() == lengths.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lanes": 5}, "lanes must divide the global batch size 12: got 5; use the number of ranks"),
        ({"world_size": 5}, "global_batch_size must be a positive multiple of world_size 5: got 12"),
        ({"epochs": 0}, "a stream must have rows and epochs: got 40 rows and 0 epochs"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_folder(tmp_path, [[40]])
    with pytest.raises(ValueError, match=message):
        stream(tmp_path, **options)


def test_a_start_beyond_the_end_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [[40]])
    with pytest.raises(ValueError, match=r"start_step must be in \[0, 4\], the steps of this stream: got 5"):
        next(stream(tmp_path).batches(5))


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [[]])
    with pytest.raises(ValueError, match="a stream must have rows and epochs: got 0 rows"):
        stream(tmp_path)


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [[4]])
    with pytest.raises(ValueError, match=r"split must be one that .* holds: got 'val' of \['train'\]"):
        ParquetStream(str(tmp_path), "val", global_batch_size=4, shuffle=False)
