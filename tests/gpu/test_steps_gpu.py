"""Steps and evaluations on one CUDA device: nothing waits, caches change no loss, metrics are those of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import Topology

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.summary import summarise
from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.sharding.caches import cached_kernels
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.checkpoints.state import run_tensors
from dlrm_torchrec.train.fit import fit_to_rows
from dlrm_torchrec.train.metrics.grouped_auc import grouped_auc
from dlrm_torchrec.train.metrics.labels import evaluate, label_metrics
from dlrm_torchrec.train.metrics.reliability import calibration_bins
from dlrm_torchrec.train.metrics.scores import Scores, predict
from dlrm_torchrec.train.optimizers import build_optimizer
from dlrm_torchrec.train.pipeline import CachePipeline, SingleRankPipeline, train_pipeline
from dlrm_torchrec.train.speed import use_speed
from dlrm_torchrec.train.task import BinaryRankingTask
from dlrm_torchrec.train.world import World, join_world
from tests.distributed import run_ranks
from tests.recipe import load_recipe

pytestmark = pytest.mark.gpu

SPEC, BATCH, STEPS = demo_spec(one_hot=(200_000, 500), multi_hot=(100_000,)), 2048, 40
SMALL_BYTES = 8 << 20  # of device memory, in which only caches of the two large tables fit


def run(world: World, *, cached: bool = False) -> tuple[Any, Any, Any]:
    """The model, its optimizer and its pipeline, as the recipe makes them."""
    recipe = load_recipe("train_dlrm")
    _, cfg = parse(recipe.PRESETS, ["demo", f"--batch-size={BATCH}", "--dense.kind=adam", "--dense.lr=0.001"])
    cfg, _ = fit_to_rows(replace(cfg, shape=SPEC), summarise("synthetic", SPEC))
    task, tables = recipe.build(cfg, SPEC, world.size, world.device)
    topology = live_topology(world.device, world_size=1, local_size=1)
    if cached:
        topology = Topology(world_size=1, local_world_size=1, compute_device="cuda", hbm_cap=SMALL_BYTES)
    config = ShardingConfig(host_memory=cached)
    plan = make_plan(task, tables, topology, config, batch_size=BATCH, spec=SPEC)
    model = DistributedModelParallel(
        task, device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=world.needs_ddp
    )
    initialize_tables(model, seed=0)
    optimizer = build_optimizer(model, cfg.sparse, cfg.dense)
    return model, optimizer, train_pipeline(model, optimizer, world)


def stream(seed: int) -> SyntheticStream:
    return SyntheticStream(SPEC, num_rows=STEPS * BATCH, global_batch_size=BATCH, seed=seed)


@contextmanager
def no_wait() -> Iterator[None]:
    """Inside ``with``, an operator that waits for the device is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def trained_without_waiting() -> None:
    with join_world(0) as world:
        model, optimizer, pipeline = run(world)
        assert isinstance(pipeline, SingleRankPipeline)
        assert optimizer.optimizers[-1][1].param_groups[0]["fused"]
        batches = stream(1).batches()
        for _ in range(STEPS // 2):  # DDP regroups gradients after its first step, and kernels are loaded
            pipeline.progress(batches)
        with no_wait():
            for _ in range(STEPS // 4):
                pipeline.progress(batches)
        predict(pipeline.detach(), stream(2).batches(), world)
        with no_wait():
            scores = predict(model, stream(2).batches(), world)
        assert scores.outputs.is_cuda
        assert scores.labels.is_cuda


def losses(*, cached: bool) -> list[float]:
    """Of steps between which the model is evaluated and its tensors are read, and the AUCs of these evaluations."""
    with join_world(0) as world:
        model, optimizer, pipeline = run(world, cached=cached)
        assert bool(cached_kernels(model)) == isinstance(pipeline, CachePipeline) == cached
        batches, found = stream(1).batches(), []
        for step in range(1, STEPS + 1):
            loss, _, _ = pipeline.progress(batches)
            found.append(float(loss))
            if step % 10 == 0:
                found.append(evaluate(pipeline.detach(), stream(2).batches(), world, learned=False)["auc"])
                pipeline.attach()
                weights = run_tensors(model, optimizer)["model"]
                tables = [value for name, value in weights.items() if ".embedding_bags." in name]
                local = [shard.tensor for table in tables for shard in table.local_shards()]
                found.append(float(sum(each.double().square().sum() for each in local)))
        return found


def test_a_step_and_a_batch_of_an_evaluation_do_not_wait_for_the_device() -> None:
    run_ranks(1, trained_without_waiting, join=False)


def test_cached_tables_train_the_same_as_tables_on_the_device() -> None:
    on_device, in_cache = (run_ranks(1, _losses, cached, join=False)[0] for cached in (False, True))
    assert in_cache == pytest.approx(on_device, rel=1e-5)


def _losses(cached: bool) -> list[float]:
    return losses(cached=cached)


def test_metrics_are_those_of_the_cpu() -> None:
    rows = 10_000_000  # several rounds of ranges
    outputs, ids = torch.randn(rows).round(decimals=3), torch.randint(0, 100_000, (rows,))
    labels, weights = (torch.rand(rows) < torch.sigmoid(outputs)).float(), torch.rand(rows) + 0.5

    def measured(device: str, weights: torch.Tensor | None) -> Any:
        scores = Scores(outputs.to(device), labels.to(device), None if weights is None else weights.to(device))
        found = label_metrics(scores, labels=["label"], target="binary", learned=True) | grouped_auc(scores, ids)
        return found, [vars(each) for each in calibration_bins(*scores)]

    for column in (None, weights):
        (found, bins), (expected, expected_bins) = measured("cuda", column), measured("cpu", column)
        assert found == pytest.approx(expected, rel=1e-6)
        assert found["auc"] == pytest.approx(expected["auc"], rel=1e-12)
        for one, other in zip(bins, expected_bins, strict=True):
            assert one == pytest.approx(other, rel=1e-6)


def test_tf32_is_less_exact_and_only_where_it_is_asked_for() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    run_ranks(1, _tf32)


def _tf32() -> None:
    task = BinaryRankingTask(torch.nn.Linear(1, 1), 1)
    a, b = torch.rand(512, 512, device="cuda"), torch.rand(512, 512, device="cuda")
    exact = (a.double() @ b.double()).float()

    def error(*speed: Any) -> float:
        use_speed(task, speed)
        return float(((a @ b - exact).abs() / exact).max())

    assert error("exact") < 1e-5 < error("tf32") < 2e-3
    assert error("exact") < 1e-5
