"""Checkpoints that are visible only when whole, and that load on another world size or sharding."""

from __future__ import annotations

import errno
import os
import time
from collections import ChainMap
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from iopath.common.file_io import g_pathmgr
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.train.checkpoints import folder as folders
from dlrm_torchrec.train.checkpoints.checksums import FileSum, Share, sync_folder
from dlrm_torchrec.train.checkpoints.marker import MARKER, marker_text, read_marker, read_progress
from dlrm_torchrec.train.checkpoints.memory import refuse_copies_without_memory
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.checkpoints.reports import Say, say_nothing, say_on_stderr
from dlrm_torchrec.train.checkpoints.state import materialise_state, restore, run_tensors
from dlrm_torchrec.train.checkpoints.storage import IoPathFileSystem, IoPathWriter
from dlrm_torchrec.train.config import CheckpointConfig
from dlrm_torchrec.train.world import World

Tensors = Callable[[nn.Module, CombinedOptimizer], dict[str, dict[str, Any]]]
_TIMES_OF_A_SAVE = 50  # between saves by time, so that they take at most 2 % of a run


class Checkpoints:
    """The checkpoints of one run: ``<folder>/step-00000123/``, committed by writing ``checkpoint.json`` last.

    Tables are saved as sharded tensors under their TorchRec names, so that DCP reshards them on load. Everything
    that is not a tensor is JSON. ``say`` gets lines for people, on rank 0.
    """

    def __init__(
        self,
        folder: str,
        config: CheckpointConfig,
        world: World,
        tensors: Tensors = run_tensors,
        *,
        say: Say = say_on_stderr,
    ) -> None:
        self.folder = folder.rstrip("/")
        self.config = config
        self.world = world
        self.tensors = tensors  # what is saved and restored of a model and its optimizer
        self.group = dist.new_group(backend="gloo")  # its own: an asynchronous save talks while training does
        self._say: Say = say if world.is_main else say_nothing
        self._pending: tuple[Future[Any] | None, IoPathWriter, Progress] | None = None
        self._whole: Progress | None = None  # of the newest checkpoint that was verified or saved
        self._newest = -1
        self._saved_s, self._save_s = time.monotonic(), 0.0

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return folders.complete_steps(self.folder)

    def due(self, progress: Progress, *, overdue: bool = False) -> bool:
        """Whether to save now: at every so many steps, or when it is ``overdue`` by time, or at a new best."""
        if self.config.best and 0 < progress.best_step == progress.step:
            return True
        return progress.step % self.config.every == 0 if self.config.every else overdue

    def overdue(self) -> bool:
        """Whether a save by time is due on this rank's clock; ranks must agree on one clock.

        It is once the minutes between checkpoints have passed, and 50 times the seconds that the last save took.
        """
        if self.config.every or not self.config.minutes:
            return False
        return time.monotonic() - self._saved_s >= max(60 * self.config.minutes, _TIMES_OF_A_SAVE * self._save_s)

    def save(self, model: nn.Module, optimizer: CombinedOptimizer, progress: Progress) -> None:
        """Write a checkpoint (all ranks call this), unless the newest one is of this step already.

        The previous one survives until this one is whole. Raises ValueError when the disk does not take it.
        """
        start_s = time.monotonic()
        self.wait()
        if progress.step == self._newest:
            return
        self._newest = progress.step
        path = folders.step_path(self.folder, progress.step)
        self._on_main(progress.step, partial(self._clear, progress.step))
        state, writer = self.tensors(model, optimizer), IoPathWriter(path, self._say)
        saving: Future[Any] | None = None
        try:
            if self.config.asynchronous:
                started = dcp.async_save(state, storage_writer=writer, process_group=self.group)
                assert isinstance(started, Future)
                saving = started
            else:
                dcp.save(state, storage_writer=writer, process_group=self.group)
        except CheckpointException as error:
            self._give_up(progress.step, error)
        self._pending = (saving, writer, progress)
        if saving is None:
            self.wait()
        self._saved_s = time.monotonic()
        self._save_s = self._saved_s - start_s

    def finish(self, model: nn.Module, optimizer: CombinedOptimizer, progress: Progress) -> None:
        """Save, if the newest checkpoint is older, and return when it is whole."""
        self.save(model, optimizer, progress)
        self.wait()

    def wait(self) -> None:
        """Finish the save that is under way, if there is one."""
        if self._pending is None:
            return
        (saving, writer, progress), self._pending = self._pending, None
        try:
            if saving is not None:
                saving.result()
        except CheckpointException as error:
            self._give_up(progress.step, error)
        sums: list[dict[str, FileSum]] = [writer.sums] * self.world.size
        dist.all_gather_object(sums, writer.sums, group=self.group)
        self._on_main(progress.step, partial(self._commit, progress, dict(ChainMap(*sums))))
        self._whole = progress

    def newest(self) -> Progress | None:
        """Where the newest whole checkpoint stands, the same on all ranks; None when there has never been one.

        All ranks verify it together. Damaged ones that are newer are set aside under another name, with a warning.
        Raises ValueError when there are only damaged ones.
        """
        if self._whole is not None:
            return self._whole
        seen: list[Any] = [self.steps(), folders.damaged_names(self.folder)] if self.world.is_main else [None, None]
        dist.broadcast_object_list(seen, src=0, group=self.group)
        faults: dict[int, str] = {}
        for step in reversed(seen[0]):
            fault = self._fault(step)
            if not fault:
                break
            faults[step] = fault
        else:
            found = [f"{folders.step_path(self.folder, step)} ({fault})" for step, fault in faults.items()] + seen[1]
            if found:
                raise ValueError(
                    f"{self.folder} must hold a whole checkpoint: got only damaged ones, {', '.join(found)}; bring one "
                    "back, move them elsewhere to begin at step 0, or start anew in another --run-dir"
                )
            return None
        path = folders.step_path(self.folder, step)
        for damaged, fault in faults.items():
            self._on_main(damaged, partial(folders.set_aside, self.folder, damaged))
            self._say(
                f"warning: checkpoint {folders.step_path(self.folder, damaged)} is damaged ({fault}), so it was set "
                f"aside as damaged-step-{damaged:08d}, and {path} is used"
            )
        self._whole = read_progress(path)
        return self._whole

    def load(self, model: nn.Module, optimizer: CombinedOptimizer, identity: dict[str, Any]) -> Progress | None:
        """Restore the newest whole checkpoint in place; None when there is none, or when it is of step 0.

        A run that was stopped before its first step has saved no state of its optimizer, and begins as it did then.
        Raises ValueError when it is of another format or of a run that differs in ``identity``, and when there is no
        memory for the asynchronous saves that the config asks for.
        """
        if self.config.asynchronous:
            refuse_copies_without_memory(self.tensors(model, optimizer), self.group, self._say)
        newest = self.newest()
        if newest is None:
            return None
        path = folders.step_path(self.folder, newest.step)
        progress = read_progress(path, identity)
        if progress.step == 0:
            return None
        materialise_state(optimizer)
        restore(path, self.tensors(model, optimizer), self.group)
        optimizer.set_optimizer_step(progress.step)
        self._newest = progress.step
        self._say(f"resumed at step {progress.step} from {path}")
        return progress

    def load_model(self, model: nn.Module, step: int | None = None) -> Progress:
        """Restore the model alone, from the checkpoint of ``step`` or the newest one.

        Raises ValueError when there is none, or when it is damaged.
        """
        path = folders.checkpoint_path(self.folder, step, self._say)
        folders.refuse(path, self._agreed(folders.full_fault(path, self._share(), self._say)))
        restore(path, {"model": model.state_dict()}, self.group)
        return read_progress(path)

    def _fault(self, step: int) -> str:
        """What is wrong with a checkpoint, empty when nothing is; the same on all ranks, which share the work."""
        path = folders.step_path(self.folder, step)
        fault = self._agreed(folders.quick_fault(self.folder, step))
        if fault:
            return fault
        if read_marker(path).sums is None:
            self._say(f"checkpoint {path} is of a format without checksums, so its content cannot be verified")
        return self._agreed(folders.full_fault(path, self._share(), self._say))

    def _share(self) -> Share:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return Share(self.world.rank, self.world.size, max(2, cores // self.world.local_size))

    def _agreed(self, fault: str) -> str:
        """The first fault that any rank found."""
        faults = [fault] * self.world.size
        dist.all_gather_object(faults, fault, group=self.group)
        return next(filter(None, faults), "")

    def _on_main(self, step: int, work: Callable[[], object]) -> None:
        """Do ``work`` for the checkpoint of ``step`` on rank 0; all ranks wait for it, and fail together."""
        failure: list[OSError | None] = [None]
        if self.world.is_main:
            try:
                work()
            except OSError as error:
                failure = [error]
        dist.broadcast_object_list(failure, src=0, group=self.group)
        if failure[0] is not None:
            raise self._refusal(step, failure[0])

    def _clear(self, step: int) -> None:
        """Make an empty folder for the checkpoint of ``step``, where a killed save may have left half of one."""
        if step in folders.all_steps(self.folder):
            folders.remove(self.folder, step)
        g_pathmgr.mkdirs(folders.step_path(self.folder, step))

    def _commit(self, progress: Progress, sums: dict[str, FileSum]) -> None:
        path, files = folders.step_path(self.folder, progress.step), IoPathFileSystem()
        sync_folder(path)
        try:
            with files.create_stream(f"{path}/{MARKER}.tmp", "wb") as stream:
                stream.write(marker_text(progress, sums))
            files.rename(f"{path}/{MARKER}.tmp", f"{path}/{MARKER}")
        except OSError:
            folders.remove(self.folder, progress.step)
            raise
        sync_folder(path)
        sync_folder(self.folder)
        keep = self.steps()[-self.config.keep :] + [progress.best_step] * self.config.best
        for step in set(folders.all_steps(self.folder)) - set(keep):
            folders.remove(self.folder, step)

    def _give_up(self, step: int, error: CheckpointException) -> None:
        """Remove half a checkpoint, and raise what is wrong as one sentence if it was the disk."""
        if self.world.is_main:
            folders.remove(self.folder, step)
        failures = [failure for failure, _ in error.failures.values()]
        of_disk = next((failure for failure in failures if isinstance(failure, OSError)), None)
        raise error if of_disk is None else self._refusal(step, of_disk) from None

    def _refusal(self, step: int, error: OSError) -> ValueError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what, advice = ("have room for", "make room") if full else ("take", "make it writable")
        kept = self.steps()
        return ValueError(
            f"the disk of {self.folder} must {what} the checkpoint of step {step}: got {error.strerror or error}; "
            f"{advice} and run the same command again, which goes on from step {kept[-1] if kept else 0}"
        )


def load_unsharded(model: nn.Module, path: str) -> Progress:
    """Restore a model that is not sharded, without ranks, from the checkpoint in folder ``path``, which is verified."""
    folders.check(path)
    restore(path, {"model": model.state_dict()})
    return read_progress(path)
