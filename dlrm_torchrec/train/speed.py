"""How fast a run computes: the arithmetic and compilation of dense parts, and the kernel that updates tables.

Each is chosen by a measurement of milliseconds on this machine, unless the user names it. A run keeps its choice, also
when another machine resumes it.

A GPU multiplies matrices of float32 several times as fast in TF32, which reads 10 of the 23 bits of a mantissa and sums
in float32. Losses then differ from those of a CPU from the fourth digit on, so TF32 is a choice like bfloat16, which is
measured first, and ``exact`` is without it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.compile import compile_dense
from dlrm_torchrec.train.config import Speed
from dlrm_torchrec.train.log import RunLog
from dlrm_torchrec.train.task import CandidateTask, NextItemTask, RankingTask
from dlrm_torchrec.train.world import World

ROUNDS = 7
GAIN = 1.15  # times as fast must dense parts be in a less exact arithmetic, for the noise of so short a measurement
GAIN_S = 10.0  # must such an arithmetic save in a run; a small model stays in float32
COMPILER_S = 15.0  # take compilers for a model, if they find nothing in their caches
PAID_BACK = 3.0  # times over must a run save that, because other work on a machine slows compilers most
SAVED = 0.3  # of the time of dense parts by compiling them, at least: .31 to .53 (LOG.md)


class Config(Protocol):
    """The settings of a run that decide what is fastest."""

    @property
    def speed(self) -> Speed:
        """What the user wants; ``auto`` leaves the choice to the machine."""

    @property
    def batch_size(self) -> int:
        """Rows of all ranks."""

    @property
    def epochs(self) -> int:
        """Passes over the rows."""

    @property
    def rows(self) -> int:
        """Of an epoch of synthetic data."""


class Data(Protocol):
    """What is known of a data set before training."""

    @property
    def dense_names(self) -> list[str]:
        """Its dense features."""

    @property
    def rows(self) -> Mapping[str, int]:
        """By split; empty for synthetic data."""


def set_speed(
    config: Config,
    model: RankingTask,
    log: RunLog,
    data: Data,
    *,
    kept: Progress | None,
    sorting_pays: Callable[[], bool],
) -> Speed:
    """Let ``model`` compute as the user wants, in place; the parts that were chosen, the same on all ranks.

    The log gets the choice, and a sentence for each part that says why. Raises ValueError when the parts that are asked
    for contradict each other.

    Args:
        config: that of the run
        model: the task, before its tables are sharded
        log: that of the run
        data: the rows that the run trains on
        kept: where the run stands, with the choice of its first start; None at the first start
        sorting_pays: measures whether updates of sorted ids are faster here than FBGEMM's
    """
    speed, why = _choose(config, model, log.world, data, kept=kept, sorting_pays=sorting_pays)
    log.note("speed", speed)
    log.say(why)
    use_speed(model, speed)
    return speed


def _choose(
    config: Config,
    model: RankingTask,
    world: World,
    data: Data,
    *,
    kept: Progress | None,
    sorting_pays: Callable[[], bool],
) -> tuple[Speed, str]:
    asked = config.speed
    if not asked or (len(asked) > 1 and {"auto", "exact"} & {*asked}):
        raise ValueError(
            f"speed must be auto, exact, or any of tf32, bf16, compile and sorted: got {' '.join(asked) or 'nothing'}; "
            "leave out auto and exact to name parts"
        )
    if asked != ("auto",):
        return asked, ""
    found: list[tuple[Speed, str] | None] = [None]
    if world.is_main:
        if kept is not None and kept.speed:
            found = [(cast(Speed, tuple(kept.speed)), f"speed {' '.join(kept.speed)}: the choice of the first start")]
        else:
            found = [_measured(config, model, world, data, sorting_pays=sorting_pays)]
    dist.broadcast_object_list(found, src=0, group=world.control)
    assert found[0] is not None
    return found[0]


def use_speed(model: RankingTask, speed: Speed, *, compiled: bool = True) -> None:
    """Let ``model`` compute at ``speed``, in place, before its tables are sharded, or all but compiled.

    TF32 is a switch of the process: it is off afterwards unless ``speed`` names it.
    """
    torch.backends.cuda.matmul.allow_tf32 = "tf32" in speed
    model.autocast = torch.bfloat16 if "bf16" in speed else None
    if compiled and "compile" in speed:
        compile_dense(model.model)


def _measured(
    config: Config, model: RankingTask, world: World, data: Data, *, sorting_pays: Callable[[], bool]
) -> tuple[Speed, str]:
    if isinstance(model, CandidateTask | NextItemTask):
        return ("exact",), "speed exact: models of sequences are not measured; name bf16 for their dense parts"
    parts, reasons = [], []
    batch_size, num_dense = config.batch_size // world.size, len(data.dense_names)
    times = dense_ms(model, batch_size=batch_size, num_dense=num_dense, device=world.device)
    steps = config.epochs * data.rows.get("train", config.rows) / config.batch_size
    best = "float32"
    for faster in list(times)[1:]:
        if times[faster] * GAIN < times[best] and steps * (times[best] - times[faster]) > 1000 * GAIN_S:
            best = faster
    if best != "float32":
        parts.append(best)
        reasons.append(f"{best}: dense parts take {times[best]:.1f} ms a step, in float32 {times['float32']:.1f}")
    seconds = steps * times[best] / 1000
    if world.device.type == "cpu" and seconds * SAVED > PAID_BACK * COMPILER_S and _has_compiler():
        parts.append("compile")
        reasons.append(f"compile: dense parts take {seconds / 60:,.0f} minutes of the run otherwise")
    if world.device.type == "cpu" and sorting_pays():
        parts.append("sorted")
        reasons.append("sorted: updates of tables are faster over sorted ids on this processor")
    if not parts:
        return ("exact",), "speed exact: nothing else saves time that is worth it here"
    return cast(Speed, tuple(parts)), "\n".join(f"speed {reason}" for reason in reasons)


def dense_ms(model: RankingTask, *, batch_size: int, num_dense: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of a step of the dense parts, forward and backward, by arithmetic, from exact to less exact.

    These are ``float32``, on a GPU ``tf32``, and ``bf16``, which is autocast. Each is the least of rounds that take
    turns, which other work on the machine disturbs least. Vectors drawn at random stand in for those of the tables,
    which hold no memory yet. Parameters and their gradients stay as they are.
    """
    times: dict[str, list[float]] = {"float32": [], **({"tf32": []} if device.type == "cuda" else {}), "bf16": []}
    own = [device] if device.type == "cuda" else []  # without it, a rank would start the GPUs of all ranks
    with torch.random.fork_rng(own), _drawn_vectors(model, batch_size, device) as vectors, _tf32_restored():
        dense = torch.randn(batch_size, num_dense, device=device)
        leaves = [*(each for each in model.parameters() if not each.is_meta and each.requires_grad), *vectors]
        for _ in range(ROUNDS + 1):
            for arithmetic, taken in times.items():
                torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
                start = _now(device)
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=arithmetic == "bf16"):
                    outputs = model.model(dense, KeyedJaggedTensor.empty())
                torch.autograd.grad(outputs.float().sum(), leaves, allow_unused=True)
                taken.append(_now(device) - start)
    return {arithmetic: 1000 * min(taken[1:]) for arithmetic, taken in times.items()}


@contextmanager
def _tf32_restored() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def _drawn_vectors(model: nn.Module, batch_size: int, device: torch.device) -> Iterator[list[torch.Tensor]]:
    """Inside ``with``, the tables of ``model`` give random vectors, which are yielded, whatever the ids are."""
    tables = {name: module for name, module in model.named_modules() if hasattr(module, "embedding_bag_configs")}
    outermost = {name: tables[name] for name in tables if not any(name.startswith(f"{other}.") for other in tables)}
    drawn = {name: _Drawn(module, batch_size, device) for name, module in outermost.items()}
    try:
        for name, module in drawn.items():
            model.set_submodule(name, module)
        yield [module.vectors for module in drawn.values()]
    finally:
        for name, module in outermost.items():
            model.set_submodule(name, module)


class _Drawn(nn.Module):
    """Gives the vectors that it drew, as if they were pooled from the tables that it stands for."""

    def __init__(self, tables: Any, batch_size: int, device: torch.device) -> None:
        super().__init__()
        configs = tables.embedding_bag_configs()
        self.keys = [feature for config in configs for feature in config.feature_names]
        self.dims = [config.embedding_dim for config in configs for _ in config.feature_names]
        self.vectors = torch.randn(batch_size, sum(self.dims), device=device, requires_grad=True)

    def forward(self, _features: KeyedJaggedTensor) -> KeyedTensor:
        return KeyedTensor(keys=self.keys, length_per_key=self.dims, values=self.vectors)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _has_compiler() -> bool:
    return shutil.which(os.environ.get("CXX", "g++")) is not None
