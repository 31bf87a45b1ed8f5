"""The folder of a run's checkpoints: which there are, which are whole, and what else may lie there."""

from __future__ import annotations

import os
import re
import shutil
from typing import Literal

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.train.checkpoints.checksums import Share, content_fault, length_fault, sync_folder
from dlrm_torchrec.train.checkpoints.marker import MARKER, DamagedError, read_marker
from dlrm_torchrec.train.checkpoints.reports import Say, say_on_stderr
from dlrm_torchrec.train.checkpoints.storage import IoPathReader

Which = int | Literal["best"] | None  # a step, that of the best validation, or the newest
_ALONE = Share()


def step_path(folder: str, step: int) -> str:
    """The folder of the checkpoint of ``step``."""
    return f"{folder}/step-{step:08d}"


def all_steps(folder: str) -> list[int]:
    """Steps of all checkpoints in ``folder``, oldest first, with those that a killed save left; nothing else there."""
    names = [name.rstrip("/") for name in g_pathmgr.ls(folder)] if g_pathmgr.isdir(folder) else []
    steps = [int(name[5:]) for name in names if re.fullmatch(r"step-[0-9]{8,}", name, re.ASCII)]
    paths = {step: step_path(folder, step) for step in steps}
    ours = [step for step, path in paths.items() if os.path.basename(path) in names and g_pathmgr.isdir(path)]
    return sorted(set(ours))


def complete_steps(folder: str) -> list[int]:
    """Steps of the complete checkpoints in ``folder``, oldest first."""
    return [step for step in all_steps(folder) if g_pathmgr.exists(f"{step_path(folder, step)}/{MARKER}")]


def damaged_names(folder: str) -> list[str]:
    """Names of the checkpoints that were set aside in ``folder``."""
    names = g_pathmgr.ls(folder) if g_pathmgr.isdir(folder) else []
    return sorted(name.rstrip("/") for name in names if name.startswith("damaged-step-"))


def quick_fault(folder: str, step: int) -> str:
    """What is wrong with the marker of a checkpoint or with the lengths of its files; empty when nothing is.

    Raises ValueError when it is of a format that this code does not read.
    """
    path = step_path(folder, step)
    try:
        marker = read_marker(path)
        if marker.progress.step != step:
            return f"{MARKER} is that of step {marker.progress.step}"
        lengths = _lengths(path) if marker.sums is None else {k: each.num_bytes for k, each in marker.sums.items()}
    except DamagedError as error:
        return str(error)
    return next(filter(None, (length_fault(path, name, num_bytes) for name, num_bytes in lengths.items())), "")


def _lengths(path: str) -> dict[str, int]:
    """The lengths of the files of a checkpoint without checksums, by its metadata."""
    try:
        places = IoPathReader(path).read_metadata().storage_data.values()
    except OSError as error:
        raise DamagedError(f".metadata cannot be read: {error.strerror}") from None
    except Exception as error:  # whatever unpickling half a file raises
        raise DamagedError(f".metadata is not whole: {error}") from None
    lengths: dict[str, int] = {}
    for each in places:
        lengths[each.relative_path] = max(each.offset + each.length, lengths.get(each.relative_path, 0))
    return lengths


def full_fault(path: str, share: Share = _ALONE, say: Say = say_on_stderr) -> str:
    """What is wrong with the content of a checkpoint's files, as far as this rank verifies it; empty when nothing is.

    A checkpoint without checksums has no fault that could be seen.
    """
    sums = read_marker(path).sums
    return "" if sums is None else content_fault(path, sums, share, say)


def check(path: str, say: Say = say_on_stderr) -> None:
    """ValueError unless the files of the checkpoint in folder ``path`` are what was written."""
    try:
        fault = full_fault(path, say=say)
    except DamagedError as error:
        fault = str(error)
    refuse(path, fault)


def refuse(path: str, fault: str) -> None:
    """ValueError if a checkpoint has a ``fault``."""
    if fault:
        raise ValueError(f"checkpoint {path} must be what was saved: got damage, {fault}; name another one with --step")


def checkpoint_path(folder: str, which: Which = None, say: Say = say_on_stderr) -> str:
    """The checkpoint of a step in ``folder``, or that of the best validation, or by default the newest one.

    A newest one with an obvious fault is passed over with a warning. Raises ValueError when there is none, when the
    step that is asked for has a fault, or when the best validation was not saved.
    """
    steps = complete_steps(folder)
    if isinstance(which, int):
        if which not in steps:
            raise _missing(folder, f"a whole checkpoint of step {which}", steps)
        refuse(step_path(folder, which), quick_fault(folder, which))
        return step_path(folder, which)
    while steps:
        path, fault = step_path(folder, steps[-1]), quick_fault(folder, steps[-1])
        if not fault:
            break
        say(f"checkpoint {path} is damaged: {fault}; the one before it is taken")
        steps.pop()
    else:
        raise _missing(folder, "a whole checkpoint", steps)
    if which is None:
        return path
    best = read_marker(path).progress.best_step
    if best not in steps:
        raise _missing(folder, f"the checkpoint of the best validation, step {best}" if best else "a validation", steps)
    return checkpoint_path(folder, best, say)


def _missing(folder: str, wanted: str, steps: list[int]) -> ValueError:
    return ValueError(f"{folder} must hold {wanted}: got those of steps {steps}; name another run or step")


def set_aside(folder: str, step: int) -> str:
    """Rename a damaged checkpoint, so that it is one no longer and nothing is lost; its new path."""
    path, names = step_path(folder, step), damaged_names(folder)
    wanted = f"damaged-{os.path.basename(path)}"
    name = next(each for each in (wanted, *(f"{wanted}-{i}" for i in range(2, len(names) + 3))) if each not in names)
    if "://" not in folder:
        os.rename(path, f"{folder}/{name}")
        sync_folder(folder)
        return f"{folder}/{name}"
    g_pathmgr.mkdirs(f"{folder}/{name}")
    for file in sorted(g_pathmgr.ls(path), key=lambda file: file != MARKER):  # the marker first: it is one no longer
        g_pathmgr.mv(f"{path}/{file}", f"{folder}/{name}/{file}")
    return f"{folder}/{name}"


def remove(folder: str, step: int) -> None:
    """Remove a checkpoint, or what a killed save left of one."""
    path = step_path(folder, step)
    if os.path.islink(path):
        return  # somebody else put it there
    if g_pathmgr.exists(f"{path}/{MARKER}"):
        g_pathmgr.rm(f"{path}/{MARKER}")  # first it stops being a checkpoint, then it goes
    if "://" not in path:
        shutil.rmtree(path)
        return
    for name in g_pathmgr.ls(path):  # object stores have no folders to remove
        g_pathmgr.rm(f"{path}/{name}")
