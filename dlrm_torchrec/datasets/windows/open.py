"""The windows that a run trains on, one after another: those that are there now, and in which order they may come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import torch.distributed as dist
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.open import SYNTHETIC
from dlrm_torchrec.datasets.prepared.manifest import NAME, join
from dlrm_torchrec.datasets.stream import Ranks, Stream
from dlrm_torchrec.datasets.synthetic.drift import DayStream, DriftingClicks
from dlrm_torchrec.datasets.windows.by_time import DAY_MICROSECONDS, time_windows
from dlrm_torchrec.datasets.windows.config import TimesConfig, WindowsConfig
from dlrm_torchrec.datasets.windows.folders import folder_windows
from dlrm_torchrec.datasets.windows.window import Reading, Window, digest_of
from dlrm_torchrec.schema import DatasetSpec

_SLACK = 1.5  # two windows are neighbours up to so many times the usual distance, which is the least of all


def list_windows(
    data: str, shape: DatasetSpec, config: WindowsConfig, *, rows: int, seed: int
) -> tuple[DatasetSpec, list[Window]]:
    """The spec of the data, and its windows from the earliest on.

    ``data`` is 'synthetic' for days of ``rows`` rows of the spec ``shape``, a prepared folder that is cut by
    ``config.time``, or a folder of prepared folders. Raises ValueError when it is none of these.
    """
    if data == SYNTHETIC:
        return shape, _synthetic(shape, config, rows=rows, seed=seed)
    if config.time:
        return time_windows(data, config.time, config.microseconds)
    if g_pathmgr.exists(join(data, NAME)):
        raise ValueError(
            f"windows of the prepared folder {data} must have a column of times: got none; name it in --windows.time, "
            "or name a folder with one prepared folder for each window"
        )
    return folder_windows(data)


class Ranked(Protocol):
    """All ranks; see ``dlrm_torchrec.train.world``."""

    @property
    def control(self) -> dist.ProcessGroup: ...


def agreed(windows: Sequence[Window], world: Ranked) -> list[Window]:
    """The windows that every rank has listed, where one may have been prepared while the ranks looked."""
    names: list[list[str]] = [[]] * world.control.size()
    dist.all_gather_object(names, [window.name for window in windows], group=world.control)
    return [window for window in windows if all(window.name in each for each in names)]


def _synthetic(spec: DatasetSpec, config: WindowsConfig, *, rows: int, seed: int) -> list[Window]:
    world = DriftingClicks(spec, config.drift, seed=seed)
    told = {"seed": seed, "rows": rows, "drift": asdict(config.drift), "spec": spec.to_json()}
    return [
        Window(
            name=f"day-{day:04d}",
            day=float(day),
            rows=rows,
            digest=digest_of({**told, "day": day}),
            open=partial(_open_day, world, day, rows=rows),
            best_auc=DayStream(world, day, num_rows=rows, ranks=Ranks(1, 0, 1)).best_auc,
        )
        for day in range(config.days)
    ]


def _open_day(world: DriftingClicks, day: int, ranks: Ranks, reading: Reading, *, rows: int) -> Stream:
    return DayStream(world, day, num_rows=rows, ranks=ranks, epochs=reading.epochs)  # its rows are in a random order


class Listed(Protocol):
    """What decides of a window whether it is trained on; see ``windows.window`` and ``windows.histories``."""

    @property
    def name(self) -> str: ...

    @property
    def day(self) -> float: ...

    @property
    def digest(self) -> str: ...


AnyWindow = TypeVar("AnyWindow", bound=Listed)


def remaining(
    trained: Sequence[Mapping[str, Any]], listed: Sequence[AnyWindow], config: TimesConfig, *, is_open: bool
) -> list[AnyWindow]:
    """The windows of ``listed`` that are still to be trained on, in order.

    Raises ValueError when a window was changed since it was trained on, when rows are given twice, and unless
    ``config`` skips what is missing, when a window comes late or there is a gap before one.

    Args:
        trained: the windows that the run has begun, with name, digest and day; they need not be listed any more
        listed: what is there now, from the earliest on
        config: how windows follow each other
        is_open: whether the last of ``trained`` is not done yet
    """
    digests = {each["digest"]: each["name"] for each in trained}
    names = {each["name"]: each["digest"] for each in trained}
    last = max((each["day"] for each in trained), default=-math.inf)
    opened = trained[-1]["name"] if is_open else ""
    left: list[AnyWindow] = []
    for window in listed:
        if window.name in names:
            if window.digest != names[window.name]:
                raise ValueError(
                    f"window {window.name} must hold the rows that the run was trained on: got others, of digest "
                    f"{window.digest} in place of {names[window.name]}; restore it, or start anew in another --run-dir"
                )
            if window.name == opened:
                left.append(window)
        elif window.digest in digests:
            raise ValueError(
                f"rows must be given once: got those of window {digests[window.digest]} again as window "
                f"{window.name}; remove this copy"
            )
        elif window.day > last:
            left.append(window)
            digests[window.digest] = window.name
        elif config.missing == "refuse":
            raise ValueError(
                f"window {window.name} must come before {trained[-1]['name']}, which the run was trained on: got it "
                "late; remove it, or set --windows.missing skip to go on without its rows"
            )
    if opened and not (left and left[0].name == opened):
        raise ValueError(f"window {opened} must be there until it is trained on: got none of that name; bring it back")
    if config.missing == "refuse":
        known = [*((each["name"], each["day"]) for each in trained), *((each.name, each.day) for each in left)]
        _check_gaps(list(dict.fromkeys(known)), config)
    return left


def _check_gaps(windows: list[tuple[str, float]], config: TimesConfig) -> None:
    """Raises ValueError when there is a gap between two of these windows, with name and day, in order."""
    distances = [after - before for (_, before), (_, after) in pairwise(windows)]
    usual = config.microseconds / DAY_MICROSECONDS if config.by_time else min(distances, default=0)
    for distance, ((before, _), (after, _)) in zip(distances, pairwise(windows), strict=True):
        if distance > _SLACK * usual:
            raise ValueError(
                f"windows must follow each other without a gap: got {after} after {before}; bring what is between "
                "them, or set --windows.missing skip to go on without"
            )
