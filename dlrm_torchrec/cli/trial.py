"""Two processes that add a number and train a small sharded table; each part that works is printed on stdout.

``dlrm-recipes doctor`` runs this file under torchrun.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    total = torch.ones(1)
    dist.all_reduce(total)
    if total.item() != dist.get_world_size():
        raise RuntimeError(f"a sum over {dist.get_world_size()} processes gave {total.item()}")
    say("collective")
    train_a_table()
    say("sharded step")
    dist.destroy_process_group()


def say(part: str) -> None:
    if dist.get_rank() == 0:
        print(part, flush=True)


def train_a_table() -> None:
    """One step of SGD at rate 1 on a sharded table of ones; the gradient of a pooled vector is 1, so rows become 0."""
    from torch.distributed.optim import _apply_optimizer_in_backward as optimize_in_backward
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.types import ParameterConstraints
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    config = EmbeddingBagConfig(
        name="t", num_embeddings=4, embedding_dim=8, feature_names=["f"], init_fn=torch.nn.init.ones_
    )
    tables = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
    optimize_in_backward(torch.optim.SGD, tables.parameters(), {"lr": 1.0})
    ranks = dist.get_world_size()
    topology = Topology(world_size=ranks, local_world_size=ranks, compute_device="cpu")
    constraints = {"t": ParameterConstraints(sharding_types=["table_wise"])}
    sharders: Any = [EmbeddingBagCollectionSharder()]
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints, stats=[])
    plan = planner.collective_plan(tables, sharders, dist.group.WORLD)
    model = DistributedModelParallel(tables, device=torch.device("cpu"), plan=plan, sharders=sharders)
    ids = KeyedJaggedTensor(["f"], torch.arange(4), lengths=torch.ones(4, dtype=torch.int32))
    for expected in (1.0, 0.0):
        pooled = model(ids).values()
        if not torch.equal(pooled, torch.full_like(pooled, expected)):
            raise RuntimeError(f"rows of a sharded table must be {expected}: got {pooled}")
        pooled.sum().backward()


if __name__ == "__main__":
    main()
