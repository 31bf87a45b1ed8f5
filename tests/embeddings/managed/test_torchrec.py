"""Why TorchRec's own modules do not hold our maps. If one of these fails, they are worth another look (LOG.md)."""

from __future__ import annotations

import pytest
import torch
from torchrec.modules.hash_mc_evictions import HashZchEvictionConfig, HashZchEvictionPolicyName
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.modules.mc_modules import LRU_EvictionPolicy, MCHManagedCollisionModule
from torchrec.sparse.jagged_tensor import JaggedTensor

CPU = torch.device("cpu")


def bags(ids: torch.Tensor) -> dict[str, JaggedTensor]:
    return {"t": JaggedTensor(values=ids, lengths=torch.ones_like(ids))}


def test_a_checkpoint_of_mch_lacks_the_sightings_of_an_interval() -> None:
    def trained(*, resumed: bool) -> list[int]:
        module = MCHManagedCollisionModule(8, CPU, LRU_EvictionPolicy(), 2, name="t")
        module(bags(torch.arange(4)))
        if resumed:
            saved, module = module.state_dict(), MCHManagedCollisionModule(8, CPU, LRU_EvictionPolicy(), 2, name="t")
            module.load_state_dict(saved)
        module(bags(torch.arange(4, 7)))
        return sorted(module.state_dict()["_mch_sorted_raw_ids"].tolist())[:7]

    assert trained(resumed=False) == [*range(7)]
    assert trained(resumed=True) != [*range(7)]


def test_rows_of_mch_cannot_be_shared_by_more_ranks_than_before() -> None:
    whole = MCHManagedCollisionModule(8, CPU, LRU_EvictionPolicy(), 2, name="t")
    half = whole.rebuild_with_output_id_range((0, 4), [0, 4, 8])
    saved = whole.state_dict()
    for name in ("_mch_sorted_raw_ids", "_mch_remapped_ids_mapping", "_mch_last_access_iter"):
        saved[name] = saved[name][:4]
    with pytest.raises(AssertionError, match="cannot be built out of"):
        half.load_state_dict(saved)


def test_mpzch_does_not_train_on_a_cpu() -> None:
    module = HashZchManagedCollisionModule(
        16,
        CPU,
        total_num_buckets=2,
        eviction_policy_name=HashZchEvictionPolicyName.LRU_EVICTION,
        eviction_config=HashZchEvictionConfig(features=["f"], single_ttl=1),
    )
    with pytest.raises(RuntimeError, match="Expected readonly"):
        module(bags(torch.arange(4)))
