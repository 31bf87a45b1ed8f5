"""Managed tables on one CUDA device give rows to the same ids as on a CPU."""

from __future__ import annotations

import pytest
import torch

from dlrm_torchrec.embeddings.managed.id_map import IdMap
from tests.embeddings.managed.test_id_map import drifting, managed

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("policy", ["lru", "lfu", "distance"])
def test_the_map_is_the_cpus(policy: str) -> None:
    config = managed(2_048, policy=policy, update_every=3, max_age=20)
    on_cpu, on_gpu = IdMap(config), IdMap(config, torch.device("cuda"))
    for ids in drifting(60, 1_400, seed=torch.seed()):
        batch = torch.tensor(ids, dtype=torch.int64)
        assert torch.equal(on_gpu.train_step(batch.cuda())[0].cpu(), on_cpu.train_step(batch)[0])
    for name, value in on_cpu.state_dict().items():
        assert torch.equal(on_gpu.state_dict()[name].cpu(), value), name
