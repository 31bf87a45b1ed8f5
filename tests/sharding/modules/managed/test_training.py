"""Managed tables inside a DLRM: pipelines change nothing, and checkpoints go on between two updates, on any ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardedTensor
from torchrec.models.dlrm import DLRM
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.cli.vectors.trained import open_checkpoint
from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.managed.collection import ManagedEmbeddingBagCollection
from dlrm_torchrec.embeddings.tables import Tables, build_tables
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.modules.managed.report import managed_report
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints, load_unsharded
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.checkpoints.tables import read_dense
from dlrm_torchrec.train.config import CheckpointConfig, OptimizerConfig
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.task import BinaryRankingTask
from dlrm_torchrec.train.world import World, join_world
from tests.distributed import run_ranks

DIM, BATCH, STEPS = 16, 64, 16
SPEC = demo_spec((50, 400, 20_000), (1_000, 6_000))
TABLES = TablesConfig(kind="managed", update_every=5, policy="distance", max_age=9)
SPARSE = OptimizerConfig(kind="rowwise_adagrad", lr=0.1)
DENSE = OptimizerConfig(kind="adagrad", lr=0.1)
State: TypeAlias = dict[str, torch.Tensor]  # whole tensors of tables, their maps and their moments


def model_of(world_size: int, device: str = "meta") -> tuple[BinaryRankingTask, Tables]:
    tables = build_tables(SPEC.tables(DIM), TABLES)
    torch.manual_seed(0)
    if device == "cpu":
        tables = ManagedEmbeddingBagCollection(tables.physical_configs())
    return BinaryRankingTask(DLRM(tables, len(SPEC.dense), [32, DIM], [32, 1]), world_size), tables


@dataclass(frozen=True)
class Run:
    """Train from the newest checkpoint in ``folder``, if there is one, to a step, and save."""

    last: int
    folder: Path | None = None
    row_wise: tuple[str, ...] = ()
    pipelined: bool = False
    check: int = 0  # also save at this step, and go on
    report: bool = False

    def __call__(self, world: World) -> tuple[list[float], State]:
        task, tables = model_of(world.size)
        optimize_tables_in_backward(tables, SPARSE)
        plan = make_plan(
            task,
            tables,
            live_topology(world.device, world_size=world.size, local_size=world.local_size),
            ShardingConfig(kind="table_wise", tables=dict.fromkeys(self.row_wise, "row_wise")),
            batch_size=BATCH // world.size,
            spec=SPEC,
            group=world.control,
        )
        model = DistributedModelParallel(task, device=world.device, plan=plan, sharders=plan.sharders)
        optimizer = build_optimizer(model, SPARSE, DENSE)
        checkpoints = Checkpoints(str(self.folder), CheckpointConfig(), world) if self.folder else None
        progress = checkpoints.load(model, optimizer, {}) if checkpoints else None
        if progress is None:
            initialize_tables(model, seed=0)
            progress = Progress(identity={}, lanes=world.size)
        stream = SyntheticStream(
            SPEC, num_rows=STEPS * BATCH, global_batch_size=BATCH, rank=world.rank, world_size=world.size
        )
        batches, losses = stream.batches(progress.step), []
        pipeline = train_pipeline(model, optimizer, world)
        assert world.size == 1 or isinstance(pipeline, TrainPipelineSparseDist)
        while progress.step < self.last:
            if self.pipelined:
                loss = pipeline.progress(batches)[0]
            else:
                optimizer.zero_grad()
                loss, _ = model(next(batches))
                loss.backward()
                optimizer.step()
            losses.append(float(loss.detach()))
            progress = replace(progress, step=progress.step + 1)
            if checkpoints and progress.step == self.check:
                checkpoints.save(model, optimizer, progress)
        if checkpoints:
            checkpoints.finish(model, optimizer, progress)
        return losses, whole_tensors(model) | (reported(model) if self.report else {})


def reported(model: DistributedModelParallel) -> State:
    found = managed_report(model)
    assert not any(managed_report(model)[name] for name in found if "occupied" not in name)
    return {name: torch.tensor(value) for name, value in found.items()}


def whole_tensors(model: DistributedModelParallel) -> State:
    """The sharded tensors of the model and of its moments; each rank has all of them."""
    states = [model.state_dict(), *model.fused_optimizer.state_dict()["state"].values()]
    own = [
        (name, shard.metadata.shard_offsets, shard.tensor)
        for state in states
        for name, value in state.items()
        if isinstance(value, ShardedTensor)
        for shard in value.local_shards()
    ]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    pieces: dict[str, list[torch.Tensor]] = {}
    for name, _, tensor in sorted((piece for of_rank in every for piece in of_rank), key=lambda piece: piece[:2]):
        pieces.setdefault(name, []).append(tensor)
    return {name: torch.cat(tensors) for name, tensors in pieces.items()}


def in_world(function: Callable[[World], Any]) -> Any:
    with join_world(seed=0) as world:
        return function(world)


def run(ranks: int, **options: Any) -> tuple[list[float], State]:
    """Mean losses over the ranks, and what they hold in the end."""
    found = run_ranks(ranks, in_world, Run(**options), join=False, timeout_s=60)
    losses = [sum(step) / ranks for step in zip(*(each for each, _ in found), strict=True)]
    return losses, found[0][1]


def assert_equal_maps(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    maps = [name for name in expected if ".maps." in name]
    assert len(maps) == 4 * 9
    for name in maps:
        if name.endswith("tallies"):
            assert torch.equal(found[name].sum(0), expected[name].sum(0)), name
        else:
            assert torch.equal(found[name], expected[name]), name


WIDE = ("t_id_2", "t_list_1")


@pytest.fixture(scope="module")
def expected() -> tuple[list[float], State]:
    """On one rank, without interruption."""
    losses, state = run(1, last=STEPS)
    tallies = {name: value.sum(0).tolist() for name, value in state.items() if name.endswith("tallies")}
    assert all(admitted > 100 for _, _, admitted, _, _ in tallies.values())
    assert all(evicted > 10 for *_, evicted, _ in tallies.values())
    return losses, state


@pytest.mark.parametrize(("row_wise", "pipelined"), [((), False), (WIDE, True)])
def test_two_ranks_train_alike(
    expected: tuple[list[float], State], row_wise: tuple[str, ...], *, pipelined: bool
) -> None:
    losses, state = run(2, last=STEPS, row_wise=row_wise, pipelined=pipelined)
    assert losses == pytest.approx(expected[0], rel=1e-4)
    assert_equal_maps(state, expected[1])


def test_a_run_resumed_between_two_updates_is_the_undisturbed_one_bit_for_bit(tmp_path: Path) -> None:
    whole = run(2, last=STEPS, row_wise=WIDE, pipelined=True)
    kept = run(2, last=STEPS, folder=tmp_path / "kept", row_wise=WIDE, pipelined=True, check=8)
    first, _ = run(2, last=8, folder=tmp_path / "parts", row_wise=WIDE, pipelined=True)
    second, state = run(2, last=STEPS, folder=tmp_path / "parts", row_wise=WIDE, pipelined=True)
    assert kept[0] == first + second == whole[0]
    for name, value in whole[1].items():
        assert torch.equal(state[name], value), name
        assert torch.equal(kept[1][name], value), name


def test_two_ranks_then_one_then_two_keep_maps_and_vectors(expected: tuple[list[float], State], tmp_path: Path) -> None:
    losses: list[float] = []
    for ranks, last, row_wise in ((2, 4, WIDE), (1, 9, ()), (2, STEPS, WIDE[:1])):
        found, state = run(ranks, last=last, folder=tmp_path, row_wise=row_wise)
        losses += found
    assert losses == pytest.approx(expected[0], rel=1e-4)
    assert_equal_maps(state, expected[1])
    for name, value in expected[1].items():
        if name.endswith(".weight"):
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4)

    task, tables = model_of(1, "cpu")
    assert isinstance(tables, ManagedEmbeddingBagCollection)
    load_unsharded(task, str(tmp_path / f"step-{STEPS:08d}"))
    tables.eval()
    (feature,) = [feature for feature in SPEC.sparse if feature.name == "id_2"]
    ids = torch.arange(0, 20_000, 7)
    bags = KeyedJaggedTensor([each.name for each in SPEC.sparse], ids, lengths=_ones_for("id_2", len(ids)))
    read = open_checkpoint(str(tmp_path / f"step-{STEPS:08d}"), SPEC, feature, asdict(TABLES))
    assert torch.equal(read(ids), tables(bags)["id_2"])
    assert not any(".maps." in name for name in read_dense(str(tmp_path / f"step-{STEPS:08d}")))
    unsharded = {name: value for name, value in task.state_dict().items() if ".maps." in name}
    for name, value in unsharded.items():
        assert torch.equal(value, state[name]), name


def _ones_for(name: str, count: int) -> torch.Tensor:
    """Lengths of bags of one id each, of one feature."""
    return torch.cat([torch.full((count,), int(feature.name == name)) for feature in SPEC.sparse])


def test_the_report_covers_all_ranks_and_interruptions(expected: tuple[list[float], State], tmp_path: Path) -> None:
    run(2, last=6, folder=tmp_path, row_wise=WIDE)
    _, state = run(2, last=STEPS, folder=tmp_path, row_wise=WIDE, report=True)
    for table, rows in (("t_id_1", 100), ("t_id_2", 5_000), ("t_list_0", 250), ("t_list_1", 1_500)):
        start = f"model.sparse_arch.embedding_bag_collection.maps.{table}."
        lookups, without_row, admitted, evicted, returned = expected[1][f"{start}tallies"].sum(0).tolist()
        counts = {"lookups": lookups, "admitted": admitted, "evicted": evicted, "returned": returned}
        shares = {
            "without_row": without_row / lookups,
            "occupied": int((expected[1][f"{start}ids"] != 2**63 - 1).sum()) / rows,
        }
        for what, value in (counts | shares).items():
            assert float(state[f"{table}/{what}"]) == pytest.approx(value), (table, what)
        assert admitted - evicted == shares["occupied"] * rows
