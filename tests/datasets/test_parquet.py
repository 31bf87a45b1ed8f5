"""The Parquet stream: every row once per epoch, the same global batches on any number of ranks, resumable anywhere."""

import itertools
import threading
import time
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from iopath.common.file_io import PathHandler, g_pathmgr

from dlrm_torchrec.datasets import parquet
from dlrm_torchrec.datasets.parquet import ParquetStream
from tests.datasets.batches import rows_of
from tests.datasets.prepared import reference_rows, write_folder

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


def stream(folder, *, batch=12, rank=0, world_size=1, seed=5, shuffle=True, epochs=1, lanes=None):
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


def global_batches(folder, world_size, **options):
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
def test_every_row_once_and_the_same_batches_on_any_number_of_ranks(tmp_path, layout, lanes, shuffle):
    expected = reference_rows(write_folder(tmp_path, LAYOUTS[layout]))
    alone = global_batches(tmp_path, 1, lanes=lanes, shuffle=shuffle)
    assert Counter(itertools.chain(*alone)) == Counter(expected)
    assert [len(rows) for rows in alone[:-1]] == [12] * (len(alone) - 1)
    assert len(alone) == stream(tmp_path).num_steps
    for world_size in (2, 3, 4):
        assert global_batches(tmp_path, world_size, lanes=lanes, shuffle=shuffle) == alone


def test_without_shuffling_one_lane_reads_the_files_in_order(tmp_path):
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
def test_any_layout_lanes_and_ranks(tmp_path, files, lanes, world_size):
    expected = reference_rows(write_folder(tmp_path, files))
    alone = global_batches(tmp_path, 1, lanes=lanes, epochs=2)
    assert Counter(itertools.chain(*alone)) == Counter(expected * 2)
    assert global_batches(tmp_path, world_size, lanes=lanes, epochs=2) == alone


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rank", [0, 1])
def test_batches_from_any_step_are_the_tail(tmp_path, layout, rank):
    write_folder(tmp_path, LAYOUTS[layout])
    options = {"rank": rank, "world_size": 2, "epochs": 3}
    everything = list(stream(tmp_path, **options).batches())
    for start in range(len(everything) + 1):
        tail = list(stream(tmp_path, **options).batches(start))
        assert len(tail) == len(everything) - start
        for batch, expected in zip(tail, everything[start:], strict=True):
            assert rows_of([batch]) == rows_of([expected])


def test_epochs_are_shuffled_differently_and_repeatably(tmp_path):
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


def test_shuffling_permutes_row_groups_and_rows_anew_in_each_epoch(tmp_path):
    write_folder(tmp_path, [[50] * 10])
    batches = stream(tmp_path, batch=50, epochs=2).batches()
    users = np.array([[row[2][0][0] for row in rows_of([batch])] for batch in batches])
    groups = users // 50
    assert {len(set(batch)) for batch in groups.tolist()} == {2}  # 50 rows come alike from two tracks of row groups
    epochs = users[:10].ravel(), users[10:].ravel()
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(500))
    assert (epochs[0] != epochs[1]).mean() > 0.9
    visits = [list(dict.fromkeys(half.ravel().tolist())) for half in (groups[:10, :25], groups[10:, :25])]
    assert visits[0] != visits[1]
    assert all(len(track) == 5 for track in visits)
    for group in range(10):
        first, second = (epoch[epoch // 50 == group].tolist() for epoch in epochs)
        assert list(range(50 * group, 50 * group + 50)) != first != second


@pytest.fixture
def decoded(monkeypatch):
    """Grows by one weak reference with every row group that is decoded."""
    read_row_group, columns = parquet.read_row_group, []

    def record(*args):
        result = read_row_group(*args)
        columns.append(weakref.ref(result))
        return result

    monkeypatch.setattr(parquet, "read_row_group", record)
    return columns


def test_each_rank_decodes_about_its_own_rows_only(tmp_path, decoded):
    write_folder(tmp_path, [[64], [8] * 8])
    shares = [sum(batch.num_rows for batch in stream(tmp_path, rank=r, world_size=2).batches()) for r in (0, 1)]
    assert shares == [64, 64]
    assert len(decoded) <= 9 + 1  # nine row groups, of which one lies across the boundary of the two lanes


def test_row_groups_are_decoded_ahead_and_past_ones_are_released(tmp_path, decoded):
    write_folder(tmp_path, [[24] * 30])
    batches = stream(tmp_path, shuffle=False).batches()
    for taken in range(1, 61):
        next(batches)
        reached = -(-taken * 12 // 24)
        deadline = time.monotonic() + 60
        while len(decoded) < min(reached + 1, 30) and time.monotonic() < deadline:
            time.sleep(0.001)
        made = -(-(taken + parquet.BATCHES_AHEAD) * 12 // 24)  # by the batches that are made ahead
        assert min(reached + 1, 30) <= len(decoded) <= made + 1 + parquet.ROW_GROUPS_AHEAD
        # Those ahead, those that batches made ahead are cut from, and one that a thread may not have let go of yet.
        assert sum(columns() is not None for columns in decoded) <= parquet.ROW_GROUPS_AHEAD + 4


def test_the_threads_end_with_the_stream_and_with_its_abandonment(tmp_path):
    write_folder(tmp_path, [[24] * 10])
    threads = threading.active_count()
    batches = stream(tmp_path).batches()
    next(batches)
    assert threading.active_count() > threads
    del batches
    assert threading.active_count() == threads
    for _ in stream(tmp_path).batches():
        pass
    assert threading.active_count() == threads


def test_two_passes_may_run_side_by_side(tmp_path):
    expected = reference_rows(write_folder(tmp_path, [[30], [30]]))
    one = stream(tmp_path)
    for left, right in zip(one.batches(), one.batches(), strict=True):
        assert rows_of([left]) == rows_of([right])
    assert Counter(row for batch in one.batches() for row in rows_of([batch])) == Counter(expected)


class CountingHandler(PathHandler):
    """Serves ``test://`` from a local folder and counts what is opened."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.opened = Counter()

    def _get_supported_prefixes(self):
        return ["test://"]

    def _open(self, path, mode="r", **_):
        self.opened[path] += 1
        return open(self.folder / path.removeprefix("test://bucket/"), mode)

    def _exists(self, path, **_):
        return (self.folder / path.removeprefix("test://bucket/")).exists()


def test_paths_go_through_the_users_handler(tmp_path):
    expected = reference_rows(write_folder(tmp_path, [[30], [30]]))
    handler = CountingHandler(tmp_path)
    g_pathmgr.register_handler(handler, allow_override=True)
    rows = [row for batch in stream("test://bucket/").batches() for row in rows_of([batch])]
    assert Counter(rows) == Counter(expected)
    assert handler.opened["test://bucket/part-1.parquet"] >= 2


def test_the_batch_has_the_types_of_its_contract(tmp_path):
    write_folder(tmp_path, [[12]])
    batch = next(stream(tmp_path).batches())
    assert batch.dense_features.dtype == batch.labels.dtype == torch.float32
    assert batch.sparse_features.keys() == ["user", "history", "shop"]
    assert batch.sparse_features.values().dtype == torch.int64
    assert batch.sparse_features.lengths().dtype == torch.int32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lanes": 5}, "lanes must divide the global batch size 12: got 5; use the number of ranks"),
        ({"world_size": 5}, "global_batch_size must be a positive multiple of world_size 5: got 12"),
        ({"epochs": 0}, "a stream must have rows and epochs: got 40 rows and 0 epochs"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, message):
    write_folder(tmp_path, [[40]])
    with pytest.raises(ValueError, match=message):
        stream(tmp_path, **options)


def test_a_start_beyond_the_end_is_refused(tmp_path):
    write_folder(tmp_path, [[40]])
    with pytest.raises(ValueError, match=r"start_step must be in \[0, 4\], the steps of this stream: got 5"):
        next(stream(tmp_path).batches(5))


def test_a_split_without_rows_is_refused(tmp_path):
    write_folder(tmp_path, [[]])
    with pytest.raises(ValueError, match="a stream must have rows and epochs: got 0 rows"):
        stream(tmp_path)


def test_an_unknown_split_is_refused(tmp_path):
    write_folder(tmp_path, [[4]])
    with pytest.raises(ValueError, match=r"split must be one that .* holds: got 'val' of \['train'\]"):
        ParquetStream(str(tmp_path), "val", global_batch_size=4, shuffle=False)
