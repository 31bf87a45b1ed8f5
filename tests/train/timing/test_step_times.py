"""Timed steps: they train the same as untimed steps, their parts have the right names, and the bytes are exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRM

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import build_tables, physical_configs
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig, ShardingKind
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.config import LogConfig, OptimizerConfig
from dlrm_torchrec.train.log import RunLog
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.task import BinaryRankingTask
from dlrm_torchrec.train.timing import timed_step
from dlrm_torchrec.train.timing.stopwatch import PARTS, Stopwatch
from dlrm_torchrec.train.timing.timed_step import TimedStep
from dlrm_torchrec.train.world import World
from tests.distributed import here, run_ranks
from tests.recipe import load_recipe, records

SMALL = ["demo", "--rows=24576", "--batch-size=2048", "--log.every=1"]  # 12 steps
MIXED = [
    "--eval-every=6",
    "--sharding.tables",
    "t_id_0",
    "data_parallel",
    "t_id_7",
    "row_wise",
    "t_list_1",
    "table_wise",
]
CASES = {
    "three shardings": (2, "train_dlrm", [*MIXED, "--sparse.kind=adagrad"], (4, 9)),
    "one rank, one step, the last": (1, "train_dlrm", ["--eval-every=0"], (12, 12)),
}
COMPOSITIONAL = (2, "train_dlrm_compositional", ["--tables.operation=add", *MIXED], (1, 7))


def _twice(recipe: str, arguments: list[str], folder: Path, window: tuple[int, int]) -> None:
    module = load_recipe(recipe)
    for name, timed in (("plain", []), ("timed", ["--log.timed", *map(str, window)])):
        module.main(*parse(module.PRESETS, [*arguments, *timed, f"--run-dir={folder}/{name}"]))


def trained(folder: Path) -> list[dict[str, float]]:
    """Everything that a run recorded except its speed and its memory."""
    measured = ("samples_per_s", "bytes/fullest_rank", "bytes/emptiest_rank")
    return [{name: value for name, value in r.items() if name not in measured} for r in records(folder / "demo")]


@pytest.mark.parametrize(
    ("world_size", "recipe", "options", "window"),
    [*CASES.values(), pytest.param(*COMPOSITIONAL, marks=pytest.mark.slow)],
    ids=[*CASES, "compositional, from the first step"],
)
def test_a_timed_run_trains_the_same(
    tmp_path: Path, world_size: int, recipe: str, options: list[str], window: tuple[int, int]
) -> None:
    run_ranks(world_size, _twice, recipe, [*SMALL, *options], tmp_path, window, join=False)
    assert trained(tmp_path / "timed") == trained(tmp_path / "plain")
    assert len(trained(tmp_path / "timed")) == 12 + (2 if "--eval-every=6" in options else 1)

    found = json.loads((tmp_path / "timed/demo/step_times.json").read_text())
    assert (found["version"], found["device"], found["steps"]) == (1, "cpu", list(window))
    assert (found["world_size"], found["batch_size"]) == (world_size, 2048 // world_size)
    (saved,) = (tmp_path / "timed/demo/checkpoints").glob("*/checkpoint.json")
    assert found["plan"] == json.loads(saved.read_text())["plan"]
    assert len(found["ranks"]) == world_size
    never = {"tables_optimizer", "dense_all_reduce", "output_dist_backward"} if world_size == 1 else set()
    for rank, measured in enumerate(found["ranks"]):
        milliseconds = measured["milliseconds"]
        assert milliseconds.keys() == {*PARTS, "step"}
        assert {part for part, value in milliseconds.items() if value <= 0} <= never
        if window[0] == window[1]:  # medians of one step add up to it
            total = sum(milliseconds[part] for part in PARTS)
            assert 0.9 * milliseconds["step"] < total <= milliseconds["step"]
        held = (measured["weight_bytes"], measured["optimizer_bytes"])
        assert held == bytes_by_plan(recipe, [*SMALL, *options], found["plan"], rank)


def bytes_by_plan(recipe: str, arguments: list[str], plan: dict[str, Any], rank: int) -> tuple[int, int]:
    """Bytes of float32 weights and of the moments of Adagrad, whole or row-wise, that a rank should hold."""
    _, config = parse(load_recipe(recipe).PRESETS, arguments)
    weights = moments = 0
    for table in physical_configs(build_tables(config.shape.tables(dim=config.bottom[-1]), config.tables)):
        for shard in plan[table.name]["shards"]:
            if shard["rank"] == rank:
                rows, columns = shard["size"] or (table.num_embeddings, table.embedding_dim)
                weights += 4 * rows * columns
                moments += 4 * rows * (columns if config.sparse.kind == "adagrad" else 1)
    return weights, moments


class Watched(Stopwatch):
    """Records what each part changed: the weights of tables, or the gradients of the bottom and the top MLP."""

    model: DistributedModelParallel
    found: list[tuple[str, set[str]]]

    def switch(self, part: str) -> str:
        before = super().switch(part)
        state = {"tables": [value for name, value in self.model.state_dict().items() if "embedding_bags" in name]}
        for name, mlp in (("bottom", "dense_arch"), ("top", "over_arch")):
            parameters = [value for key, value in self.model.named_parameters() if mlp in key]
            state[name] = [value if value.grad is None else value.grad for value in parameters]
        sums = {name: [_sum(value) for value in values] for name, values in state.items()}
        last: dict[str, list[float]] = getattr(self, "_last", sums)
        self.found.append((before, {name for name in sums if sums[name] != last[name]}))
        self._last = sums
        return before


def _sum(value: Any) -> float:
    local = [shard.tensor for shard in value.local_shards()] if hasattr(value, "local_shards") else [value]
    return float(sum(tensor.detach().double().abs().sum() for tensor in local))


def _parts_of_a_step(kind: ShardingKind, tables: TablesConfig) -> list[tuple[str, set[str]]]:
    world = here()
    spec = demo_spec(one_hot=(300, 500), multi_hot=(400,))
    bags = build_tables(spec.tables(dim=16), tables, world.device)
    model = BinaryRankingTask(DLRM(bags, len(spec.dense), [16, 16], [16, 1], dense_device=world.device), world.size)
    optimizer = OptimizerConfig(kind="sgd", lr=0.1)
    optimize_tables_in_backward(bags, optimizer)
    topology = live_topology(world.device, world_size=world.size, local_size=world.size)
    plan = make_plan(model, bags, topology, ShardingConfig(kind=kind), batch_size=32, spec=spec, group=world.control)
    sharded = DistributedModelParallel(model, device=world.device, plan=plan, sharders=plan.sharders)
    initialize_tables(sharded, seed=0)
    stream = SyntheticStream(spec, num_rows=192, global_batch_size=64, rank=world.rank, world_size=world.size)
    step = TimedStep(sharded, build_optimizer(sharded, optimizer, optimizer), world)
    batches = stream.batches()
    step.run(batches)  # DDP's first one is different
    Watched.model, Watched.found = sharded, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timed_step, "Stopwatch", Watched)
        step.run(batches)
    return Watched.found


def visited(found: list[tuple[str, set[str]]]) -> list[str]:
    """The parts in order of time, without waiting; a part that continues is listed once."""
    parts = [part for part, _ in found if part != "waiting"]
    return [part for part, before in zip(parts, [None, *parts], strict=False) if part != before]


FORWARD = ["batch", "tables_optimizer", "dense_optimizer", "dense_forward"]
FORWARD += ["input_dist", "lookup", "output_dist", "dense_forward", "dense_backward", "output_dist_backward"]
BACKWARD = ["dense_backward", "dense_all_reduce", "dense_backward", "tables_optimizer", "dense_optimizer"]
MLPS = {"bottom", "top"}


@pytest.mark.parametrize("tables", [TablesConfig(), TablesConfig(kind="quotient_remainder", operation="path")])
def test_each_part_does_what_it_is_called(tables: TablesConfig) -> None:
    for found in run_ranks(2, _parts_of_a_step, "table_wise", tables):
        assert visited(found) == [*FORWARD, "lookup_backward", *BACKWARD]
        assert [(part, changed) for part, changed in found if changed] == [
            ("dense_optimizer", MLPS),  # zeros
            ("dense_backward", {"top"}),
            ("lookup_backward", {"tables"}),
            ("dense_backward", {"bottom"}),
            ("dense_all_reduce", MLPS),
        ]


def test_replicated_tables_are_averaged_on_the_way_back_and_updated_at_the_end() -> None:
    for found in run_ranks(2, _parts_of_a_step, "data_parallel", TablesConfig()):
        parts = ["lookup_backward", "output_dist_backward", "lookup_backward"]
        assert visited(found) == [*FORWARD, *parts, *BACKWARD]
        assert [part for part, changed in found if "tables" in changed] == ["tables_optimizer"]


def test_only_steps_that_are_left_are_timed(tmp_path: Path) -> None:
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"), control=None)  # type: ignore[arg-type]  # alone
    log = RunLog(str(tmp_path), LogConfig(timed=(3, 5)), world, {})
    assert log.timing(Progress(identity={}, lanes=1, step=5)) is None
    timing = log.timing(Progress(identity={}, lanes=1, step=4, plan={"t": 1}))
    assert timing is not None
    assert (timing.first, timing.last, timing.step, timing.plan) == (3, 5, 4, {"t": 1})
    assert RunLog(str(tmp_path), LogConfig(), world, {}).timing(Progress(identity={}, lanes=1)) is None
    with pytest.raises(ValueError, match=r"timed steps must be among the run's 4 steps: got \(3, 5\); name earlier"):
        log.start(0, 4)


@pytest.mark.parametrize("steps", [(0, 3), (4, 3)])
def test_timed_steps_must_be_in_order(steps: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"timed steps must be a first and a last one, from 1: got \(.*; name two"):
        LogConfig(timed=steps)
