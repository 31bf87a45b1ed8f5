"""Checkpoints that are visible only when whole, and that load on another world size or sharding."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections import ChainMap
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from iopath.common.file_io import g_pathmgr
from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.train.checkpoints.identity import first_difference
from dlrm_torchrec.train.checkpoints.state import materialise_state, run_tensors
from dlrm_torchrec.train.checkpoints.storage import IoPathReader, IoPathWriter
from dlrm_torchrec.train.config import CheckpointConfig
from dlrm_torchrec.train.world import World

FORMAT = 3  # 2 had no digest of the data in its identity
MARKER = "checkpoint.json"
Tensors = Callable[[nn.Module, CombinedOptimizer], dict[str, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: everything beside tensors that an exact resume needs."""

    identity: dict[str, Any]  # what defines model and data; a checkpoint of another identity is refused
    lanes: int  # parallel cuts of the data order, fixed for the life of a run
    step: int = 0  # optimizer steps done; the data stream is positioned by it
    last: dict[str, float] = field(default_factory=dict)  # newest validation metrics
    best: dict[str, float] = field(default_factory=dict)  # those of the highest AUC so far, or of the lowest RMSE
    plan: Any = None  # the sharding plan as JSON, for people and for the dry run

    def validated(self, metrics: dict[str, float]) -> Progress:
        """This progress with new validation metrics, the best ones if their AUC is the highest or RMSE the lowest."""
        if "auc" in metrics:
            better = metrics["auc"] > self.best.get("auc", 0.0)
        else:
            better = metrics["rmse"] < self.best.get("rmse", math.inf)
        return dataclasses.replace(self, last=metrics, best=metrics if better else self.best)


class Checkpoints:
    """The checkpoints of one run: ``<folder>/step-00000123/``, committed by writing ``checkpoint.json`` last.

    Tables are saved as sharded tensors under their TorchRec names, so that DCP reshards them on load. Everything
    that is not a tensor is JSON.
    """

    def __init__(self, folder: str, config: CheckpointConfig, world: World, tensors: Tensors = run_tensors) -> None:
        self.folder = folder.rstrip("/")
        self.config = config
        self.world = world
        self.tensors = tensors  # what is saved and restored of a model and its optimizer
        self.group = dist.new_group(backend="gloo")  # its own: an asynchronous save talks while training does
        self._pending: Future[Any] | None = None
        self._pending_progress: Progress | None = None
        self._newest = -1

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return complete_steps(self.folder)

    def save(self, model: nn.Module, optimizer: CombinedOptimizer, progress: Progress) -> None:
        """Write a checkpoint (all ranks call this), unless the newest one is of this step already.

        The previous one survives until this one is whole.
        """
        self.wait()
        if progress.step == self._newest:
            return
        self._newest = progress.step
        path = self._path(progress.step)
        if self.world.is_main:
            g_pathmgr.mkdirs(path)
        dist.barrier(self.group)
        state = self.tensors(model, optimizer)
        self._pending_progress = progress
        if self.config.asynchronous:
            saving = dcp.async_save(state, storage_writer=IoPathWriter(path), process_group=self.group)
            assert isinstance(saving, Future)
            self._pending = saving
        else:
            dcp.save(state, storage_writer=IoPathWriter(path), process_group=self.group)
            self._commit()

    def finish(self, model: nn.Module, optimizer: CombinedOptimizer, progress: Progress) -> None:
        """Save, if the newest checkpoint is older, and return when it is whole."""
        self.save(model, optimizer, progress)
        self.wait()

    def wait(self) -> None:
        """Finish an asynchronous save, if one is under way."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
            self._commit()

    def load(self, model: nn.Module, optimizer: CombinedOptimizer, identity: dict[str, Any]) -> Progress | None:
        """Restore the newest complete checkpoint in place; None when there is none.

        Raises ValueError when it is of another format or of a run that differs in ``identity``.
        """
        step = self._newest_step()
        if step < 0:
            return None
        path = self._path(step)
        progress = read_progress(path, identity)
        materialise_state(optimizer)
        self._read(path, self.tensors(model, optimizer))
        optimizer.set_optimizer_step(progress.step)
        self._newest = progress.step
        return progress

    def load_model(self, model: nn.Module, step: int | None = None) -> Progress:
        """Restore the model alone, from the checkpoint of ``step`` or the newest one; ValueError when there is none."""
        path = checkpoint_path(self.folder, step)
        self._read(path, {"model": model.state_dict()})
        return read_progress(path)

    def _newest_step(self) -> int:
        """The step of the newest complete checkpoint, -1 if there is none; the same on all ranks."""
        steps = self.steps() if self.world.is_main else []
        newest = [steps[-1] if steps else -1]
        dist.broadcast_object_list(newest, src=0, group=self.group)
        return newest[0]

    def _read(self, path: str, state: dict[str, dict[str, Any]]) -> None:
        sizes = [_sizes(state)] * self.world.size
        dist.all_gather_object(sizes, sizes[self.world.rank], group=self.group)  # nodes have tables of their own
        _refuse_foreign_tensors(path, tuple(state), dict(ChainMap(*sizes)))
        dcp.load(state, storage_reader=IoPathReader(path), process_group=self.group)

    def _path(self, step: int) -> str:
        return _step_path(self.folder, step)

    def _commit(self) -> None:
        progress = self._pending_progress
        if progress is None or not self.world.is_main:
            return
        marker = f"{self._path(progress.step)}/{MARKER}"
        with g_pathmgr.open(f"{marker}.tmp", "w") as stream:
            json.dump({"format": FORMAT, "torch": torch.__version__, **dataclasses.asdict(progress)}, stream, indent=1)
        if not g_pathmgr.mv(f"{marker}.tmp", marker):
            raise OSError(f"cannot write {marker}; check the permissions of the run folder")
        self._remove_old(self.steps()[-self.config.keep :])

    def _remove_old(self, keep: list[int]) -> None:
        """Remove older checkpoints, and what a killed save left behind."""
        for name in g_pathmgr.ls(self.folder):
            path = f"{self.folder}/{name.rstrip('/')}"
            if name.startswith("step-") and int(name.rstrip("/")[5:]) not in keep:
                if g_pathmgr.exists(f"{path}/{MARKER}"):
                    g_pathmgr.rm(f"{path}/{MARKER}")  # first it stops being a checkpoint, then it goes
                _remove_folder(path)


def complete_steps(folder: str) -> list[int]:
    """Steps of the complete checkpoints in ``folder``, oldest first."""
    if not g_pathmgr.isdir(folder):
        return []
    names = [name.rstrip("/") for name in g_pathmgr.ls(folder) if name.startswith("step-")]
    return sorted(int(name[5:]) for name in names if g_pathmgr.exists(f"{folder}/{name}/{MARKER}"))


def checkpoint_path(folder: str, step: int | None = None) -> str:
    """The complete checkpoint of ``step`` in ``folder``, the newest one by default; ValueError when there is none."""
    steps = complete_steps(folder)
    if not steps or step not in (None, *steps):
        wanted = "a whole checkpoint" if step is None else f"a whole checkpoint of step {step}"
        raise ValueError(f"{folder} must hold {wanted}: got those of steps {steps}; name another run or step")
    return _step_path(folder, steps[-1] if step is None else step)


def load_unsharded(model: nn.Module, path: str) -> Progress:
    """Restore a model that is not sharded, without ranks, from the checkpoint in folder ``path``."""
    state: dict[str, dict[str, Any]] = {"model": model.state_dict()}
    _refuse_foreign_tensors(path, tuple(state), _sizes(state))
    dcp.load(state, storage_reader=IoPathReader(path), no_dist=True)
    return read_progress(path)


def _step_path(folder: str, step: int) -> str:
    return f"{folder}/step-{step:08d}"


def read_progress(path: str, identity: dict[str, Any] | None = None) -> Progress:
    """The JSON half of a checkpoint; ValueError when this code, or a run of ``identity``, cannot use it."""
    with g_pathmgr.open(f"{path}/{MARKER}", "r") as stream:
        data = json.load(stream)
    if data.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint {path} must have format {FORMAT}: got {data.get('format')!r}; "
            "use the version of dlrm-torchrec that wrote it, or another run folder"
        )
    fields = {field.name for field in dataclasses.fields(Progress)}
    progress = Progress(**{name: value for name, value in data.items() if name in fields})
    difference = None if identity is None else first_difference(progress.identity, identity)
    if difference is not None:
        name, saved, wanted = difference
        raise ValueError(
            f"{name} must be what the checkpoint {path} was trained with, {saved}: got {wanted}; "
            f"{_advice(name)}, or start anew in another --run-dir"
        )
    return progress


def _advice(name: str) -> str:
    if name == "data_digest":
        return "these are other rows, so evaluate the run on them (recipes/evaluate.py --data)"
    if name.startswith("spec."):
        return "prepare the data with the vocabularies and scales of the run's own data"
    return "restore it"


def _sizes(state: dict[str, dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Sizes of tensors by the names that they have in a checkpoint."""
    return {f"{part}.{name}": tuple(value.size()) for part, tensors in state.items() for name, value in tensors.items()}


def _refuse_foreign_tensors(path: str, parts: tuple[str, ...], wanted: dict[str, tuple[int, ...]]) -> None:
    """ValueError unless the checkpoint's ``parts`` have just the ``wanted`` tensors; before any tensor is touched."""
    saved = {
        name: tuple(entry.size)
        for name, entry in IoPathReader(path).read_metadata().state_dict_metadata.items()
        if name.partition(".")[0] in parts and isinstance(entry, TensorStorageMetadata)
    }
    advice = "it belongs to another model or optimizer, so start anew in another --run-dir"
    for name, size in wanted.items():
        if saved.get(name) != size:
            found = f"one of shape {saved[name]}" if name in saved else "no tensor of that name"
            raise ValueError(f"checkpoint {path} must hold {name} of shape {size}: got {found}; {advice}")
    left = sorted(saved.keys() - wanted.keys())
    if left:
        raise ValueError(
            f"checkpoint {path} must hold no more tensors than this model has: got {left[0]}, one of {len(left)} that "
            f"it lacks; {advice}"
        )


def _remove_folder(path: str) -> None:
    if "://" not in path:
        shutil.rmtree(path)
        return
    for name in g_pathmgr.ls(path):  # object stores have no folders to remove
        g_pathmgr.rm(f"{path}/{name}")
