"""Maps of managed tables on the double of a GPU: the CPU's rows, and no wait but where rows are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dlrm_torchrec.embeddings.managed.id_map import IdMap
from tests.device.double import META, Double
from tests.device.on_device import numbers_of
from tests.embeddings.managed.test_id_map import drifting, managed

EVERY = 5


@pytest.mark.parametrize(
    "rules", [{"policy": "lru", "max_age": 9}, {"policy": "lfu", "admit_after": 2}, {"policy": "distance"}]
)
def test_only_giving_rows_waits(rules: dict[str, Any]) -> None:
    config = managed(1_026, update_every=EVERY, **rules)
    on_cpu = IdMap(config)
    with Double() as device:
        on_device = IdMap(config, META)
        for step, ids in enumerate(drifting(40, 700, seed=torch.seed()), 1):
            batch = torch.tensor(ids, dtype=torch.int64)
            there = batch.to(META)
            device.clear()
            rows, _ = on_device.train_step(there)
            assert torch.equal(numbers_of(rows), on_cpu.train_step(batch)[0])
            if step > 1:  # in which the host reads the clock
                assert bool(device.waits) == (step % EVERY == 0), device.waits
        stored = on_device.state_dict()
    for name, value in on_cpu.state_dict().items():
        assert torch.equal(numbers_of(stored[name]), value), name
