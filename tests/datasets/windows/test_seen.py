"""Unseen ids of a window, against sets of all ids of the windows before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.drift import DayStream, DriftingClicks
from dlrm_torchrec.datasets.synthetic.specs import Drift, drift_spec
from dlrm_torchrec.datasets.windows.seen import SeenIds
from dlrm_torchrec.schema import SparseFeature
from tests.distributed import run_ranks

LIST = SparseFeature(name="list", rows=90, encoding="vocab", multi_hot=True, pooling_factor=2.0)
SPECS = {
    encoding: replace(spec, sparse=(*spec.sparse, LIST))
    for encoding in ("id", "hash", "managed")
    for spec in [drift_spec((40, 300), encoding=encoding)]
}
DAYS, ROWS = 5, 700


def _no_tensors(*_: object) -> dict[str, dict[str, Any]]:
    return {}


def _shares(encoding: str) -> list[float]:
    world = DriftingClicks(SPECS[encoding], Drift(replaced=0.2))
    ranks = Ranks(64, dist.get_rank(), dist.get_world_size())
    assert dist.group.WORLD is not None
    seen, found = SeenIds(world.spec, dist.group.WORLD, beside=_no_tensors), []
    for day in range(DAYS):
        for _ in seen.watch(DayStream(world, day, num_rows=ROWS, ranks=ranks).batches()):
            pass
        if day == 2:  # a run resumes here
            after = SeenIds(world.spec, dist.group.WORLD, beside=_no_tensors)
            before, seen = seen, after
            before.end_window()
            saved, loaded = (each.tensors(None, None)["seen"] for each in (before, after))
            for name, bits in loaded.items():
                bits.copy_(saved[name])
            found.append(-1.0)
        else:
            found.append(seen.end_window())
    return found


@pytest.mark.parametrize("encoding", list(SPECS))
def test_shares_are_those_of_plain_sets(encoding: str) -> None:
    found = run_ranks(2, _shares, encoding)
    world = DriftingClicks(SPECS[encoding], Drift(replaced=0.2))
    known: set[tuple[int, int]] = set()
    for day in range(DAYS):
        columns, _ = world.rows(day, 0, ROWS)
        ids = [(number, each) for number, bags in enumerate(columns.sparse) for each in bags.values.tolist()]
        share = sum(each not in known for each in ids) / len(ids)
        known |= set(ids)
        assert found[0][day] == found[1][day]
        assert found[0][day] in (-1.0, pytest.approx(share, abs=1e-12))
        assert day == 0 or 0 < share < 0.5


def _forgotten() -> list[float]:
    spec = drift_spec((40, 300))
    world = DriftingClicks(spec, Drift(replaced=0.0, living=1.0))
    assert dist.group.WORLD is not None
    seen, shares = SeenIds(spec, dist.group.WORLD, beside=_no_tensors), []
    for ids in ([], [3, 8, 16]):
        assert seen.forget({"t_id_0": np.array(ids, np.int64)} if ids else {}) is not None
        for _ in range(1 + (not ids)):
            for _ in seen.watch(DayStream(world, 0, num_rows=ROWS, ranks=Ranks(64, 0, 1)).batches()):
                pass
            shares.append(seen.end_window())
    return shares


def test_ids_that_mean_other_values_are_unseen_again() -> None:
    ((first, again, after),) = run_ranks(1, _forgotten)
    columns, _ = DriftingClicks(drift_spec((40, 300)), Drift(replaced=0.0, living=1.0)).rows(0, 0, ROWS)
    share = np.isin(columns.sparse[0].values, [3, 8, 16]).sum() / (2 * ROWS)
    assert (first, again) == (1.0, 0.0)
    assert 0 < share == after
