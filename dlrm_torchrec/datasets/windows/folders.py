"""Windows that are prepared folders below one folder, each named by its time: 2026-01-01, 2026-01-01T06, or day_17."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.open import SYNTHETIC
from dlrm_torchrec.datasets.prepared.manifest import NAME, Manifest, join
from dlrm_torchrec.datasets.spec_checks import check_same_meaning
from dlrm_torchrec.datasets.summary import digest
from dlrm_torchrec.datasets.windows.window import Window, check_only_training_rows, open_prepared
from dlrm_torchrec.schema import DatasetSpec


def folder_windows(parent: str) -> tuple[DatasetSpec, list[Window]]:
    """The spec of all prepared folders in ``parent``, and a window for each of them, the earliest first.

    A folder without a dataset.json is not whole yet, and is left for later. Raises ValueError when there is none that
    is whole, when a name tells no time, or when the ids or numbers of two folders do not mean the same.
    """
    days = _days(parent)
    if not days:
        raise ValueError(
            f"data must be a folder of prepared folders, one for each window: got {parent!r} without any; prepare the "
            "first day below it, or name the column of times of one prepared folder in --windows.time"
        )
    ordered = list(days)
    for earlier, later in pairwise(ordered):
        if days[earlier] == days[later]:
            raise ValueError(
                f"windows in {parent} must have distinct times: got {earlier} and {later}; remove one of them"
            )
    manifests = {name: Manifest.load(join(parent, name)) for name in ordered}
    spec = manifests[ordered[0]].spec
    for name in ordered:
        check_only_training_rows(manifests[name], join(parent, name))
        check_same_meaning(spec, manifests[name].spec, join(parent, name))
    return spec, [_window(parent, name, days[name], manifests[name]) for name in ordered]


def first_folder(data: str) -> str:
    """The earliest prepared folder in ``data``, or ``data`` itself if it is one, or holds none."""
    inside = [] if data == SYNTHETIC or g_pathmgr.exists(join(data, NAME)) else list(_days(data))
    return join(data, inside[0]) if inside else data


def _days(parent: str) -> dict[str, float]:
    """The times of the prepared folders in ``parent``, by name, the earliest first."""
    names = [name.rstrip("/") for name in g_pathmgr.ls(parent)] if g_pathmgr.isdir(parent) else []
    days = {name: day_of(name, parent) for name in names if g_pathmgr.exists(join(parent, name, NAME))}
    return dict(sorted(days.items(), key=lambda item: item[1]))


def day_of(name: str, parent: str) -> float:
    """The time in a name, in days; a name that is no date must end in a number, which then counts the days."""
    try:
        time = datetime.fromisoformat(name)
    except ValueError:
        number = re.search(r"[0-9]+$", name)
        if number is None:
            raise ValueError(
                f"names of windows in {parent} must be times such as 2026-01-31, or end in a number: got {name!r}; "
                "rename it, or move it elsewhere"
            ) from None
        return float(number[0])
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() / 86_400


def _window(parent: str, name: str, day: float, manifest: Manifest) -> Window:
    folder = join(parent, name)
    files = tuple((file.location(folder), file.sha256) for file in manifest.splits["train"].files)
    rows = manifest.splits["train"].rows
    read = partial(open_prepared, folder)
    return Window(name=name, day=day, rows=rows, digest=digest(manifest), open=read, folder=folder, files=files)
