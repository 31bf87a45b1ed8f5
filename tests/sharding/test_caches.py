"""Tables that are cached on a device: who is told when others write or look up; kernels of a CPU, dressed as cached."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen as Kernel
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import Topology
from torchrec.models.dlrm import DLRM
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import Tables, build_tables
from dlrm_torchrec.sharding.caches import cached_kernels, has_cached_tables
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.node_local import Nodes
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.checkpoints.state import run_tensors
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import CachePipeline, SingleRankPipeline, train_pipeline
from dlrm_torchrec.train.task import BinaryRankingTask
from tests.distributed import here, run_ranks

SPEC, SGD = demo_spec(one_hot=(300, 500), multi_hot=()), OptimizerConfig(kind="sgd", lr=0.1)


def task_and_tables() -> tuple[nn.Module, Tables]:
    tables = build_tables(SPEC.tables(dim=16))
    torch.manual_seed(0)
    task = BinaryRankingTask(DLRM(tables, len(SPEC.dense), [16], [16, 1]), here().size)
    optimize_tables_in_backward(tables, SGD)
    return task, tables


def dressed(model: nn.Module) -> tuple[Kernel, list[str]]:
    """A kernel of ``model`` that seems to have a cache and the rows of the next batch in it, and what it is told."""
    assert cached_kernels(model) == []
    sharded: Any = next(module for module in model.modules() if hasattr(module, "_lookups"))
    kernel = next(each for each in sharded._lookups[0].modules() if isinstance(each, Kernel))
    told: list[str] = []
    kernel.lxu_cache_weights = torch.zeros(8, 16)
    kernel.lxu_cache_state, kernel.lxu_state = torch.arange(8).view(2, 4), torch.arange(8).view(2, 4)
    kernel.lxu_cache_locking_counter = torch.ones(2, 4, dtype=torch.int32)
    kernel.timestep, kernel.lock_cache_line = 5, True
    kernel.timesteps_prefetched, kernel.lxu_cache_locations_list = [5], [torch.tensor([3, -1, 4], dtype=torch.int32)]
    reset = kernel.reset_cache_states

    def told_reset() -> None:
        told.append("reset")
        reset()

    kernel.flush, kernel.reset_cache_states = partial(told.append, "flush"), told_reset
    assert cached_kernels(model) == [kernel]
    return kernel, told


def check_forgotten(kernel: Kernel) -> None:
    """The cache is empty and unlocked; what was prefetched is to be read from the host's memory."""
    assert kernel.lxu_cache_state.eq(-1).all()
    assert not kernel.lxu_cache_locking_counter.any()
    assert kernel.timesteps_prefetched == [5]
    assert [each.tolist() for each in kernel.lxu_cache_locations_list] == [[-1, -1, -1]]
    assert kernel.lock_cache_line


def evaluated_between_steps() -> None:
    world, (task, tables) = here(), task_and_tables()
    topology = live_topology(world.device, world_size=1, local_size=1)
    plan = make_plan(task, tables, topology, ShardingConfig(), batch_size=8, spec=SPEC)
    model = DistributedModelParallel(task, device=world.device, plan=plan, sharders=plan.sharders)
    optimizer = build_optimizer(model, SGD, SGD)
    assert isinstance(train_pipeline(model, optimizer, world), SingleRankPipeline)
    next(iter(model.plan.plan.values()))["t_id_0"].compute_kernel = "fused_uvm_caching"
    pipeline: Any = train_pipeline(model, optimizer, world)
    assert isinstance(pipeline, CachePipeline)
    assert isinstance(train_pipeline(model, optimizer, SimpleNamespace(size=2, device=world.device)), CachePipeline)  # type: ignore[arg-type]  # what it reads

    kernel, told = dressed(model)
    assert pipeline.detach() is model
    assert pipeline.detach() is model  # once more does no harm
    assert (kernel.timesteps_prefetched, kernel.lxu_cache_locations_list, kernel.lock_cache_line) == ([], [], False)
    assert told == []
    kernel.lxu_cache_locking_counter += 1  # as prefetching does
    pipeline.attach()
    assert told[-2:] == ["flush", "reset"]  # in this order: rows in the cache may be newer
    check_forgotten(kernel)

    told.clear()
    run_tensors(model, optimizer)
    assert told == ["flush"]  # by TorchRec, so that a checkpoint is up to date


def averaged() -> tuple[torch.Tensor, torch.Tensor]:
    """A table's numbers before an average over two nodes, and after it."""
    world, (task, tables) = here(), task_and_tables()
    nodes = Nodes(world.rank, world.size, size=1, local_size=world.size, device=world.device)
    plan = nodes.plan(task, tables, ShardingConfig(), batch_size=8, spec=SPEC, group=world.control)
    model = nodes.shard(task, plan, init_data_parallel=True)
    initialize_tables(model, seed=world.rank)
    kernel, told = dressed(model)
    state = run_tensors(model, CombinedOptimizer([]))
    assert told == ["flush"]
    before = kernel.split_embedding_weights()[0].clone()
    nodes.average(state)
    assert told == ["flush", "reset"]  # written back before it, never after it: that would undo the average
    check_forgotten(kernel)
    return before, kernel.split_embedding_weights()[0]


def test_an_evaluation_does_not_take_what_was_prefetched() -> None:
    run_ranks(1, evaluated_between_steps)


def test_averages_are_not_hidden_by_caches() -> None:
    (one, after), (other, same) = run_ranks(2, averaged)
    assert not one.equal(other)
    torch.testing.assert_close(after, (one + other) / 2)
    assert same.equal(after)


def test_cached_tables_are_planned_with_prefetching() -> None:
    spec = demo_spec(one_hot=(200_000, 100), multi_hot=())
    tables = build_tables(spec.tables(dim=16))
    optimize_tables_in_backward(tables, SGD)
    small = Topology(world_size=1, local_world_size=1, compute_device="cuda", hbm_cap=8 << 20)
    for host_memory in (True, False):
        machine = small if host_memory else Topology(world_size=1, local_world_size=1, compute_device="cuda")
        config = ShardingConfig(host_memory=host_memory)
        plan = make_plan(nn.Sequential(tables), tables, machine, config, batch_size=8, spec=spec)
        assert has_cached_tables(plan) is host_memory
        for parameter in next(iter(plan.plan.values())).values():
            if parameter.compute_kernel == "fused_uvm_caching":
                assert parameter.cache_params.prefetch_pipeline  # else rows are taken away while they are in use
