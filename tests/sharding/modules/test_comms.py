"""Quantised comms: bytes on the wire, the losses that they change, what is refused, what the planner makes of them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import Topology
from torchrec.models.dlrm import DLRM

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.sharding.config import CommsConfig, Precision, ShardingConfig, ShardingKind
from dlrm_torchrec.sharding.estimate.planner_stats import EstimateStats
from dlrm_torchrec.sharding.modules.comms import GRADIENT_SCALE, Codec, GradientCodec
from dlrm_torchrec.sharding.modules.sharder import ROW_TYPES
from dlrm_torchrec.sharding.plan import Plan, make_plan
from dlrm_torchrec.sharding.plan_description import plan_to_json
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.task import BinaryRankingTask
from tests.distributed import run_ranks
from tests.recipe import ROOT, load_recipe, run_recipe
from tests.wire import Traffic, traffic

SPEC = demo_spec(one_hot=(300, 500), multi_hot=(400,))
SGD = OptimizerConfig(kind="sgd", lr=0.5)
CPU = torch.device("cpu")


def planned(sharding: ShardingConfig, dim: int = 64, **options: Any) -> tuple[nn.Module, Plan]:
    """An unsharded model and its plan for two ranks on one host."""
    torch.manual_seed(0)
    tables = build_tables(SPEC.tables(dim=dim))
    model = BinaryRankingTask(DLRM(tables, len(SPEC.dense), [16, dim], [16, 1]), world_size=2)
    optimize_tables_in_backward(tables, SGD)
    topology = Topology(world_size=2, local_world_size=2, compute_device="cpu")
    return model, make_plan(model, tables, topology, sharding, batch_size=32, spec=SPEC, **options)


class Run(NamedTuple):
    losses: list[float]  # of the global batches
    sent: Traffic  # by this rank, with the first batch


def trained(cases: list[tuple[ShardingKind, CommsConfig]]) -> list[Run]:
    found = []
    for kind, comms in cases:
        model, plan = planned(ShardingConfig(kind=kind, comms=comms))
        sharded = DistributedModelParallel(model, device=CPU, plan=plan, sharders=plan.sharders)
        initialize_tables(sharded, seed=0)
        optimizer = build_optimizer(sharded, SGD, SGD)
        stream = SyntheticStream(SPEC, num_rows=320, global_batch_size=64, rank=dist.get_rank(), world_size=2)
        losses = torch.zeros(stream.num_steps)
        for step, batch in enumerate(stream.batches()):
            optimizer.zero_grad()
            loss, _ = sharded(batch)
            loss.backward()
            optimizer.step()
            losses[step] = loss.detach()
        dist.all_reduce(losses)
        (features,) = (batch.sparse_features for batch in islice(stream.batches(), 1))
        tables = sharded.module.model.sparse_arch.embedding_bag_collection
        found.append(Run((losses / 2).tolist(), traffic(tables, features)))
    return found


# of a loss, after four steps; the rounding of an int8 number is at most the 510th part of its row's range
BOUNDS: dict[Precision, float] = {"fp32": 0, "fp16": 1e-5, "bf16": 2e-5, "int8": 2e-3}
PRECISIONS: dict[ShardingKind, list[Precision]] = {
    "table_wise": ["fp32", "fp16", "bf16", "int8"],
    "column_wise": ["fp32", "int8"],
    "row_wise": ["fp32", "fp16", "bf16"],
    "table_row_wise": ["fp32", "fp16"],
    "data_parallel": ["fp32", "int8"],
}
CASES: list[tuple[ShardingKind, CommsConfig]] = [
    *((kind, CommsConfig(forward=each, backward=each)) for kind, found in PRECISIONS.items() for each in found),
    ("table_wise", CommsConfig(forward="fp16")),
    ("table_wise", CommsConfig(backward="bf16")),
]
Runs = list[dict[tuple[ShardingKind, CommsConfig], Run]]


@pytest.fixture(scope="module")
def runs() -> Runs:
    """By rank."""
    return [dict(zip(CASES, found, strict=True)) for found in run_ranks(2, trained, CASES, timeout_s=100)]


@pytest.mark.parametrize(("kind", "comms"), CASES)
def test_losses_stay_within_the_precision(runs: Runs, kind: ShardingKind, comms: CommsConfig) -> None:
    exact, found = runs[0][kind, CommsConfig()].losses, runs[0][kind, comms].losses
    assert found == pytest.approx(exact, rel=max(BOUNDS[comms.forward], BOUNDS[comms.backward]))
    if kind == "data_parallel":
        assert found == exact  # nothing that it sends is rounded: the same arithmetic in one process
    elif comms.forward == "fp32":
        assert found[0] == exact[0]  # likewise, before the first update
    assert exact == pytest.approx(runs[0]["table_wise", CommsConfig()].losses, rel=1e-5)


@pytest.mark.parametrize(("kind", "comms"), CASES)
def test_bytes_on_the_wire(runs: Runs, kind: ShardingKind, comms: CommsConfig) -> None:
    """Ids cost what they did; 32 int8 numbers cost 8 bytes more."""
    share = {"fp32": 1, "fp16": 0.5, "bf16": 0.5, "int8": (32 + 8) / (4 * 32)}
    for by_case in runs:
        exact, found = by_case[kind, CommsConfig()].sent, by_case[kind, comms].sent
        assert found.ids == exact.ids
        if kind == "data_parallel":
            assert found == exact
        else:
            assert found.vectors == [share[comms.forward] * sent for sent in exact.vectors]
            assert found.gradients == [share[comms.backward] * sent for sent in exact.gradients]


def test_something_is_sent(runs: Runs) -> None:
    for kind in PRECISIONS.keys() - {"data_parallel"}:
        for part in zip(*(by_case[kind, CommsConfig()].sent for by_case in runs), strict=True):
            assert sum(map(sum, part)) > 0, kind


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_small_gradients_survive(precision: Precision) -> None:
    """The gradients are those of a mean over a million rows. TorchRec scales them too, but back in fp16."""
    gradients = 1e-8 * torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    codec = GradientCodec(precision, 32)
    context = codec.create_context()
    decoded = codec.decode(codec.encode(gradients.view(-1), context), context)
    assert decoded.view(8, 32) == pytest.approx(gradients, abs=2**-7 * float(gradients.abs().max()))
    assert decoded.dtype == torch.float32


def test_torchrec_loses_small_gradients() -> None:
    config = QCommsConfig(backward_precision=CommType.FP16, backward_loss_scale=GRADIENT_SCALE)
    codec = get_qcomm_codecs(config).backward
    assert codec.decode(codec.encode(torch.tensor([1e-8]))).tolist() == [0]


def test_fp16_clamps_what_it_cannot_hold() -> None:
    codec = Codec("fp16", 32)
    assert codec.decode(codec.encode(torch.tensor([1e9, -1e9]))).tolist() == [65504, -65504]


INT8 = CommsConfig(forward="int8")
REFUSED = [
    ({"kind": "row_wise", "comms": INT8}, 64, r"must send whole vectors with int8 comms: got 'row_wise', which sums"),
    (
        {"kind": "grid_shard", "comms": CommsConfig(backward="int8")},
        64,
        "must send whole vectors with int8 comms: got 'grid_shard', .*; choose another sharding, or fp16",
    ),
    ({"comms": INT8}, 24, r"dims must be multiples of 16 with int8 comms, .*: got \[24\]; choose other dims, or fp16"),
    (
        {"kind": "column_wise", "comms": INT8},
        32,
        r"column shards must be multiples of 32 columns with int8 comms: got \[16\]; choose table_wise, or fp16",
    ),
]


@pytest.mark.parametrize(("sharding", "dim", "message"), REFUSED)
def test_impossible_comms_are_refused(sharding: dict[str, Any], dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(ShardingConfig(**sharding), dim)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"comms must be one of \('fp32', .*\): got 'fp8'; name one"):
        CommsConfig(backward="fp8")  # type: ignore[arg-type]  # refused


def test_the_planner_counts_the_bytes() -> None:
    def milliseconds(comms: CommsConfig) -> tuple[float, float]:
        stats = EstimateStats("two ranks")
        planned(ShardingConfig(kind="table_wise", comms=comms), stats=stats)
        assert stats.estimate is not None
        ranks = stats.estimate.rank_milliseconds()
        return sum(rank["fwd_comms"] for rank in ranks), sum(rank["bwd_comms"] for rank in ranks)

    exact, lossy = milliseconds(CommsConfig()), milliseconds(CommsConfig(forward="int8", backward="bf16"))
    assert lossy == pytest.approx((exact[0] / 4, exact[1] / 2))


def test_the_planner_keeps_vectors_whole_for_int8() -> None:
    _, plan = planned(ShardingConfig(comms=INT8))
    assert not {table["sharding_type"] for table in plan_to_json(plan).values()} & set(ROW_TYPES)


@pytest.mark.parametrize("recipe", sorted(path.stem for path in ROOT.glob("recipes/train_*.py")))
def test_recipes_take_them(recipe: str) -> None:
    _, cfg = parse(load_recipe(recipe).PRESETS, ["demo", "--sharding.comms.forward=fp16"])
    assert cfg.sharding.comms == CommsConfig(forward="fp16")


@pytest.mark.slow
def test_an_epoch_may_end_in_an_odd_batch(tmp_path: Path) -> None:
    """Vectors have 16 numbers, so rows of 32 numbers would not divide an odd batch."""
    options = ["demo", "--rows=2101", "--batch-size=128", "--eval-every=0", "--sharding.kind=table_wise"]
    int8 = ["--sharding.comms.forward=int8", "--sharding.comms.backward=fp16"]
    exact = run_recipe("train_dlrm", [*options, f"--run-dir={tmp_path}/exact"], 1)
    lossy = run_recipe("train_dlrm", [*options, *int8, f"--run-dir={tmp_path}/lossy"], 2)
    assert 1e-6 < abs(lossy["val/logloss"] / exact["val/logloss"] - 1) < 1e-3
