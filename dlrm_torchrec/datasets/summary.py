"""What a run should know of its data before it builds a model: rows, positives, and which files they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from dlrm_torchrec.datasets.open import SYNTHETIC
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.schema import DatasetSpec

JUDGED = ("train", "val")  # splits that a run cannot do without


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The spec of a data set and the counts of its splits, ``train`` and ``val`` among them."""

    spec: DatasetSpec
    rows: Mapping[str, int] = field(default_factory=dict)  # by split; empty for synthetic data
    positives: Mapping[str, int] = field(default_factory=dict)  # of the main label, by split, if they were counted
    users: Mapping[str, int] = field(default_factory=dict)  # by split, where rows are candidates of users' histories
    again: Mapping[str, int] = field(
        default_factory=dict
    )  # by split, next items left out, which their users had before
    samples: int = 0  # of ``train``, which its rows share; 0 if each row is one
    digest: str = ""  # of all files by their content; empty for synthetic data
    files: tuple[tuple[str, str | None], ...] = ()  # place and SHA-256 of each file, if the manifest has it

    @property
    def dense_names(self) -> list[str]:
        return [feature.name for feature in self.spec.dense]


def summarise(data: str, shape: DatasetSpec, *, positives_only: bool = False) -> Summary:
    """The summary of the prepared folder ``data``; just ``shape`` when ``data`` is ``synthetic``.

    Raises ValueError when the folder cannot be trained on or judged: without a split ``train`` or ``val``, without
    rows in them, or when all rows of one of them have the same binary label. With ``positives_only``, the rows of
    ``train`` may all be positives, for a recipe that draws its negatives. The rows of histories are users, who are in
    all splits; they are refused where ``shape`` has none.
    """
    if data == SYNTHETIC:
        return Summary(spec=shape)
    manifest = Manifest.load(data)
    if manifest.spec.history is not None and shape.history is None:
        raise ValueError(
            f"data must have rows with labels: got the histories of users in {data}; train on them with train_hstu or "
            "train_hstu_next_item"
        )
    rows = {name: split.rows for name, split in manifest.splits.items()}
    counted = manifest.report.get("splits", {}) if manifest.spec.target == "binary" else {}
    positives = {name: int(counts["positives"]) for name, counts in counted.items() if name in rows}
    for name in JUDGED if manifest.spec.history is None else ():
        if not rows.get(name):
            raise ValueError(
                f"prepared data must have rows in a {name!r} split to train with: got {rows} in {data}; "
                "prepare it again with that split (--val_share 0.1 holds out a tenth of the rows)"
            )
    counts = {name: count for name, count in positives.items() if not (positives_only and name == "train")}
    if manifest.spec.history is None:
        check_classes(
            rows,
            counts,
            f"rows of {data}; look at the label column and positive_label of the spec, or split the rows otherwise",
        )
    entries = (file for split in manifest.splits.values() for file in split.files)
    files = tuple(dict.fromkeys((file.location(data), file.sha256) for file in entries))
    return Summary(spec=manifest.spec, rows=rows, positives=positives, digest=digest(manifest), files=files)


def check_classes(rows: Mapping[str, int], positives: Mapping[str, int], advice: str) -> None:
    """Raises ValueError when all rows of ``train`` or of ``val`` have the same label, where positives were counted."""
    for name in JUDGED:
        if name in positives and not 0 < positives[name] < rows[name]:
            raise ValueError(
                f"labels of split {name!r} must have both classes: got {positives[name]} positives in {rows[name]} "
                f"{advice}"
            )


def digest(manifest: Manifest) -> str:
    """Equal for two folders with the same rows in the same files and in the same order, wherever they lie.

    A manifest that was written by hand has no checksums; then the number of rows of each file decides.
    """
    content: dict[str, Any] = {
        name: [(file.rows, file.sha256) for file in split.files] for name, split in manifest.splits.items()
    }
    if manifest.multi_hot is not None:  # which ids a row gets beside those in the files
        content = {"splits": content, "multi_hot": manifest.multi_hot.to_json()}
    if manifest.windows:
        content = {"splits": content, "windows": {name: list(times) for name, times in manifest.windows.items()}}
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
