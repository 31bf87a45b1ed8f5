"""Windows that are prepared folders below one folder, each named by its time: 2026-01-01, 2026-01-01T06, or day_17."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise

import numpy as np
from iopath.common.file_io import g_pathmgr
from numpy.typing import NDArray

from dlrm_torchrec.datasets.open import SYNTHETIC
from dlrm_torchrec.datasets.prepared.manifest import NAME, Manifest, join
from dlrm_torchrec.datasets.spec_checks import check_same_meaning
from dlrm_torchrec.datasets.summary import digest
from dlrm_torchrec.datasets.windows.chain import comes_after
from dlrm_torchrec.datasets.windows.vocabulary_changes import vocabulary_changes
from dlrm_torchrec.datasets.windows.window import Window, check_only_training_rows, digest_of, open_prepared
from dlrm_torchrec.schema import DatasetSpec


def folder_windows(parent: str) -> tuple[DatasetSpec, list[Window]]:
    """The spec of all prepared folders in ``parent``, and a window for each of them, the earliest first.

    A folder without a dataset.json is not whole yet, and is left for later. Vocabularies may go on from folder to
    folder (see ``fresh_rows``), so the spec does not name them. Raises ValueError when there is none that is whole,
    when a name tells no time, or when the ids or numbers of two folders do not mean the same.
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
    spec = _without_vocabularies(manifests[ordered[0]].spec)
    for name in ordered:
        check_only_training_rows(manifests[name], join(parent, name))
        check_same_meaning(spec, _without_vocabularies(manifests[name].spec), join(parent, name))
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


def fresh_rows(folder: str, before: str) -> dict[str, NDArray[np.int64]]:
    """The rows that begin anew in a prepared folder after the one ``before`` it, by table: ids that mean other values.

    Where windows between them are left out, a value may have lost its id there and got another one. Raises ValueError
    when values have other ids although the folders are not of one chain, or when the folder before is not there any
    more.
    """
    manifests = [Manifest.load(each) for each in (before, folder)] if _has_vocabulary(folder) else []
    specs = [each.spec for each in manifests]
    if not specs or specs[0].sparse == specs[1].sparse:
        return {}
    found = vocabulary_changes(before, folder)
    tables = {feature: table.name for table in specs[1].tables(dim=1) for feature in table.features}
    for feature, changes in found.items():
        moved = not changes.stable and not comes_after(manifests[1], manifests[0])
        if moved or changes.rows != changes.rows_before:
            raise ValueError(
                f"values of feature {feature!r} must keep their ids from {before} to {folder}: got others, or another "
                "number of rows; prepare it with --after, or begin a new run with --start-from"
            )
    return {tables[feature]: changes.changed for feature, changes in found.items() if len(changes.changed)}


def _has_vocabulary(folder: str) -> bool:
    return any(feature.encoding == "vocab" for feature in Manifest.load(folder).spec.sparse)


def _without_vocabularies(spec: DatasetSpec) -> DatasetSpec:
    """The spec without the digests of vocabularies."""
    return replace(spec, sparse=tuple(replace(each, vocabulary="") for each in spec.sparse))


def _window(parent: str, name: str, day: float, manifest: Manifest) -> Window:
    folder = join(parent, name)
    files = tuple((file.location(folder), file.sha256) for file in manifest.splits["train"].files)
    rows = manifest.splits["train"].rows
    told = digest(manifest) if all(checksum for _, checksum in files) else digest_of([name, digest(manifest)])
    return Window(
        name=name,
        day=day,
        rows=rows,
        digest=told,  # without checksums, only the name tells two days apart
        open=partial(open_prepared, folder),
        folder=folder,
        fresh_after=lambda before: fresh_rows(folder, join(parent, before)),
        files=files,
    )
