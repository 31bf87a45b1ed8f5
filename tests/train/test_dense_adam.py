"""Dense Adam: tables that are trained as torch's own Adam trains an ``nn.EmbeddingBag``, on any number of ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.schema import DatasetSpec, SparseFeature
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig, ShardingKind
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.plan_description import plan_to_json
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from tests.distributed import here, run_ranks

ROWS, DIM, BATCH, STEPS = 40, 4, 8, 6  # most rows are in no batch, or in one
ADAM = OptimizerConfig(kind="dense_adam", lr=0.01, weight_decay=0.05, betas=(0.8, 0.9))
SPEC = DatasetSpec(name="s", label="y", dense=(), sparse=(SparseFeature(name="f", rows=ROWS),))


class Bags(nn.Module):
    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables
        self.bias = nn.Parameter(torch.zeros(DIM))  # a model has dense parameters, too; this one stays

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        vectors: torch.Tensor = self.tables(features).values()
        return vectors + self.bias


def start() -> torch.Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (BATCH,) and the vectors (BATCH, DIM) that their rows should become."""
    random = torch.Generator().manual_seed(step)
    return torch.randint(0, ROWS, (BATCH,), generator=random), torch.randn(BATCH, DIM, generator=random)


def sharded(kind: ShardingKind) -> tuple[torch.Tensor, set[str]]:
    """The trained rows, and the sharding type that was planned."""
    world = here()
    tables = build_tables(SPEC.tables(dim=DIM))
    optimize_tables_in_backward(tables, ADAM)
    topology = live_topology(world.device, world_size=world.size, local_size=world.local_size)
    share = BATCH // world.size
    model = Bags(tables)
    plan = make_plan(
        model, tables, topology, ShardingConfig(kind=kind), batch_size=share, spec=SPEC, group=world.control
    )
    parallel = DistributedModelParallel(model, device=world.device, plan=plan, sharders=plan.sharders)
    (weight,) = [weight for weight in parallel.parameters() if weight.shape == (ROWS, DIM)]
    with torch.no_grad():
        weight.copy_(start())
    optimizer = build_optimizer(parallel, ADAM, OptimizerConfig(kind="sgd", lr=0.0))
    mine = slice(world.rank * share, (world.rank + 1) * share)
    for step in range(STEPS):
        ids, wanted = batch(step)
        features = KeyedJaggedTensor.from_lengths_sync(["f"], ids[mine], torch.ones(share, dtype=torch.int32))
        optimizer.zero_grad()
        (parallel(features) - wanted[mine]).square().mean().backward()
        optimizer.step()
    return weight.detach().clone(), {table["sharding_type"] for table in plan_to_json(plan).values()}


def expected() -> torch.Tensor:
    bag = nn.EmbeddingBag(ROWS, DIM, mode="sum")
    with torch.no_grad():
        bag.weight.copy_(start())
    adam = torch.optim.Adam(bag.parameters(), lr=0.01, weight_decay=0.05, betas=(0.8, 0.9))
    for step in range(STEPS):
        ids, wanted = batch(step)
        adam.zero_grad()
        (bag(ids[:, None]) - wanted).square().mean().backward()
        adam.step()
    return bag.weight.detach()


@pytest.mark.parametrize("ranks", [1, 2])
def test_it_is_torchs_adam_on_whole_tables(ranks: int) -> None:
    reference = expected()
    untouched = sorted(set(range(ROWS)) - {int(i) for step in range(STEPS) for i in batch(step)[0]})
    assert untouched
    assert (reference[untouched] - start()[untouched]).abs().min() > 0.01  # the penalty moves them, too
    for found, types in run_ranks(ranks, sharded, "auto"):
        torch.testing.assert_close(found, reference, atol=1e-5, rtol=1e-5)
        assert types == {"data_parallel"}


def test_other_shardings_would_train_another_model() -> None:
    with pytest.raises(RuntimeError, match="must leave DenseAdam's arithmetic unchanged: got 'table_wise', but then"):
        run_ranks(1, sharded, "table_wise")
