"""Our greedy proposals against TorchRec's, and their number."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import GreedyProposer
from torchrec.distributed.planner.types import Proposer, ShardingOption

from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.sharding.cluster.topology import parse_cluster
from dlrm_torchrec.sharding.planner import greedy
from dlrm_torchrec.sharding.planner.constraints import TableConstraints
from dlrm_torchrec.sharding.planner.enumerator import Enumerator
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward

Names = list[tuple[str, str, str]]


def search_space(kind: type[EmbeddingEnumerator]) -> list[ShardingOption]:
    """All ways of the demo's tables, of which the rows are no multiple of the ranks."""
    spec = demo_spec(one_hot=(50, 103, 20_001), multi_hot=(1001,))
    tables = build_tables(spec.tables(dim=16))
    optimize_tables_in_backward(tables, OptimizerConfig(kind="rowwise_adagrad", lr=0.1))
    constraints = {f"t_{feature.name}": TableConstraints(pooling_factors=[3.0]) for feature in spec.sparse}
    enumerator = kind(parse_cluster("2x8:h100").topology(), 128, constraints=constraints)
    return list(enumerator.enumerate(nn.Sequential(tables), [EmbeddingBagCollectionSharder()]))


def proposals(proposer: Proposer, space: list[ShardingOption]) -> list[Names]:
    proposer.load(space)
    found = []
    while proposal := proposer.propose():
        found.append([(option.fqn, option.sharding_type, option.compute_kernel) for option in proposal])
        proposer.feedback(partitionable=True)
    return found


@pytest.mark.parametrize("use_depth", [True, False])
def test_proposals_are_torchrecs(monkeypatch: pytest.MonkeyPatch, use_depth: bool) -> None:
    space = search_space(Enumerator)
    theirs = proposals(GreedyProposer(use_depth=use_depth), list(space))
    assert proposals(greedy.Greedy(use_depth=use_depth), space) == theirs
    assert len(theirs) > 20
    monkeypatch.setattr(greedy, "WORK", 100)
    fewer = proposals(greedy.Greedy(use_depth=use_depth), space)
    assert fewer[0] == theirs[0]
    assert 2 <= len(fewer) < len(theirs) / 2
    assert all(each in theirs for each in fewer)


def test_shards_of_one_size_cost_what_torchrec_says_of_each() -> None:
    def by_name(space: list[ShardingOption]) -> dict[tuple[str, str, str], ShardingOption]:
        return {(option.fqn, option.sharding_type, option.compute_kernel): option for option in space}

    ours, theirs = by_name(search_space(Enumerator)), by_name(search_space(EmbeddingEnumerator))
    assert ours.keys() == theirs.keys()
    assert len({shard.size[0] for shard in ours["0.t_id_1", "row_wise", "fused"].shards}) > 1
    for name, option in ours.items():
        assert option.tensor.dtype == torch.float32
        for one, other in zip(option.shards, theirs[name].shards, strict=True):
            assert other.perf is not None
            assert (one.size, one.offset, one.storage) == (other.size, other.offset, other.storage)
            assert vars(one.perf).items() >= vars(other.perf).items()
