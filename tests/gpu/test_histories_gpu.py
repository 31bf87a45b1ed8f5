"""HSTU on one CUDA device: attention and losses are those of the CPU, nothing waits, and bfloat16 learns as float32."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.sequences.open import open_sequences
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.models.hstu.attention.bias import TIME_BUCKETS, BiasTables
from dlrm_torchrec.models.hstu.attention.layout import make_layout
from dlrm_torchrec.models.hstu.attention.silu import silu_attention
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.optimizers import build_optimizer
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.world import join_world
from tests.distributed import run_ranks
from tests.gpu.test_steps_gpu import no_wait
from tests.gpu.test_train_gpu import losses, run_on_cpu
from tests.recipe import load_recipe, run_recipe

pytestmark = pytest.mark.gpu

ARGUMENTS = ["demo", "--rows=400", "--log.every=1", "--eval-every=10"]
EXACT = ["--sparse.kind=adagrad", "--dense.kind=sgd", "--dense.lr=0.1"]
WARM_UP = 10  # steps


def attended(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Outputs and gradients of attention with long, short and empty histories, on the CPU in float32."""
    draw = torch.Generator().manual_seed(0)
    visible, candidates = torch.tensor([700, 0, 3, 40, 1, 520]), torch.tensor([2, 0, 1, 8, 0, 3])
    tokens = int((visible + candidates).sum())
    rows = [torch.randn(tokens, 2, dim, generator=draw) for dim in (16, 16, 24)]
    tables = [torch.randn(size, generator=draw) for size in (300, TIME_BUCKETS)]
    times = torch.randint(10**6, (tokens,), generator=draw)
    towards = torch.randn(tokens, 2, 24, generator=draw).to(device)
    q, k, v, places, buckets = inputs = [
        *(each.to(device, dtype).requires_grad_() for each in rows),
        *(each.to(device).requires_grad_() for each in tables),
    ]
    bias = BiasTables(places, buckets, times.to(device), times.to(device))
    layout = make_layout(visible, candidates, torch.device(device, 0) if device == "cuda" else None)
    found = silu_attention(q, k, v, layout, scale=0.25, divisor=700, bias=bias)
    return [each.detach().float().cpu() for each in (found, *torch.autograd.grad((found * towards).sum(), inputs))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_attention_is_that_of_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    for found, expected in zip(attended("cuda", dtype), attended("cpu", torch.float32), strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(
    "options",
    [
        ["--sharding.kind=table_wise"],
        ["--sharding.kind=row_wise"],
        ["--hstu.variant=mlperf", "--hstu.chunk-tokens=500"],
        ["--history=pooled"],
        ["--tables.kind=quotient_remainder", "--tables.collisions=4"],
    ],
)
def test_losses_equal_those_of_the_cpu(tmp_path: Path, options: list[str]) -> None:
    arguments = [*ARGUMENTS, *EXACT, *options]
    run_recipe("train_hstu", [*arguments, f"--run-dir={tmp_path}/gpu"], 1)
    run_ranks(1, run_on_cpu, "train_hstu", [*arguments, f"--run-dir={tmp_path}/cpu"], join=False)
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-4)


def trained_without_waiting() -> None:
    recipe = load_recipe("train_hstu")
    _, cfg = parse(recipe.PRESETS, ["demo", "--rows=2000"])
    with join_world(0) as world:
        task, tables = recipe.build(cfg, cfg.shape, world.size, world.device)
        topology = live_topology(world.device, world_size=1, local_size=1)
        plan = make_plan(task, tables, topology, cfg.sharding, batch_size=cfg.batch_size, spec=cfg.shape)
        model: Any = DistributedModelParallel(
            task, device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=world.needs_ddp
        )
        optimizer = build_optimizer(model, cfg.sparse, cfg.dense)
        initialize_tables(model, optimizer, seed=0)
        alone = Ranks(cfg.batch_size, 0, 1)
        streams = open_sequences("synthetic", cfg.shape, alone, cfg.samples, users=cfg.rows, epochs=1, seed=0)
        batches = islice(streams["train"].batches(), 2 * WARM_UP)
        pipeline = train_pipeline(model, optimizer, world)
        for _ in range(WARM_UP):
            pipeline.progress(batches)
        with no_wait():
            for _ in range(WARM_UP // 2):
                pipeline.progress(batches)


def test_a_step_does_not_wait_for_the_device() -> None:
    run_ranks(1, trained_without_waiting, join=False)


def test_bfloat16_learns_as_float32(tmp_path: Path) -> None:
    def auc(speed: str) -> float:
        arguments = ["demo", "--rows=5000", "--eval-every=0", f"--speed={speed}", f"--run-dir={tmp_path}/{speed}"]
        return run_recipe("train_hstu", arguments, 1)["val/auc"]

    exact = auc("exact")
    assert exact > 0.6
    assert auc("bf16") == pytest.approx(exact, abs=0.01)
