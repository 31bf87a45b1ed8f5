"""The streams of a run: prepared data, or synthetic data of the same shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.negatives import WithNegatives
from dlrm_torchrec.datasets.prepared.manifest import NAME, Manifest, Split, join
from dlrm_torchrec.datasets.prepared.parquet import ParquetStream
from dlrm_torchrec.datasets.stream import Ranks, Stream
from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.interactions import InteractionStream
from dlrm_torchrec.schema import AccessStatistics, DatasetSpec, vocabulary_path

SYNTHETIC = "synthetic"
_SAMPLED_FILES = 16  # whose first rows tell the mean of a label
_HELD_OUT_ROWS = 65_536  # of each synthetic evaluation split
_EVALUATION_BATCH = 8_192  # the least size: an evaluation does not need small batches


def load_spec(data: str, shape: DatasetSpec) -> DatasetSpec:
    """The spec of the prepared folder ``data``; ``shape`` itself when ``data`` is ``synthetic``."""
    return shape if data == SYNTHETIC else Manifest.load(data).spec


def load_statistics(data: str) -> Mapping[str, AccessStatistics]:
    """How often the ids of each sparse feature of the prepared folder ``data`` are looked up, as ``profile`` counted.

    The result is empty for ``synthetic`` and for a folder that was not profiled.
    """
    return {} if data == SYNTHETIC else Manifest.load(data).statistics


def vocabularies(data: str, spec: DatasetSpec) -> dict[str, str]:
    """The local vocabulary file of each feature or mark that has one, as preparation wrote it into the folder ``data``.

    Raises ValueError when a file is missing.
    """
    if data == SYNTHETIC:
        return {}
    paths = {
        each.name: f"{data}/{vocabulary_path(each)}" for each in (*spec.sparse, *spec.marks) if each.encoding == "vocab"
    }
    for name, path in paths.items():
        if not g_pathmgr.exists(path):
            raise ValueError(
                f"vocabulary of feature {name!r} must lie in {path}: got no such file; prepare {data} again"
            )
    return {name: g_pathmgr.get_local_path(path) for name, path in paths.items()}


def first_outputs(data: str, spec: DatasetSpec) -> list[float]:
    """What a new model should say of every row, label by label: 0 as a logit, and the mean of labels that are numbers.

    The mean is that of the prepared folder ``data``, over the first row group of its first training files, without rows
    in which the label is unknown. It is 0 if there are no such files: then nobody trains, and the weights come from a
    checkpoint. Raises ValueError when these rows have no value of a label.
    """
    names = spec.label_names
    numbers = spec.target == "number" and g_pathmgr.exists(join(data, NAME))
    splits = Manifest.load(data).splits if numbers else {}
    if "train" not in splits:
        return [0.0] * len(names)
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for file in splits["train"].files[:_SAMPLED_FILES]:
        with g_pathmgr.open(file.location(data), "rb") as raw:
            parquet = pq.ParquetFile(raw)
            if parquet.num_row_groups:
                for number, column in enumerate(parquet.read_row_group(0, columns=names).select(names).columns):
                    values = column.cast("float64").to_numpy()
                    sums[number] += np.nansum(values)
                    counts[number] += np.count_nonzero(~np.isnan(values))
    if not counts.all():
        raise ValueError(
            f"each label must have values in the first training rows: got none of {names[int(counts.argmin())]!r} in "
            f"{data}; shuffle the rows, or remove this label"
        )
    return list(sums / counts)


def open_streams(
    data: str,
    spec: DatasetSpec,
    ranks: Ranks,
    *,
    rows: int,
    epochs: int,
    seed: int,
    lanes: int,
    grouped: float = 0.0,
    needed: tuple[str, ...] = ("train", "val"),
) -> dict[str, Stream]:
    """One stream per split, always with those ``needed``; only ``train`` is shuffled and repeated.

    ``rows`` is the length of a synthetic epoch; prepared data has its own. ``lanes`` is explained in ``order``, and
    ``grouped``, for synthetic rows, in ``Teacher``. Raises ValueError when prepared data lack a split that is needed.
    """
    held_out = held_out_batch(ranks)
    if data == SYNTHETIC:
        return {
            split: SyntheticStream(
                spec,
                split=split,
                num_rows=rows * epochs if split == "train" else _HELD_OUT_ROWS,
                global_batch_size=ranks.global_batch_size if split == "train" else held_out,
                rank=ranks.rank,
                world_size=ranks.world_size,
                seed=seed,
                grouped=grouped,
            )
            for split in ("train", "val")
        }
    return {
        split: ParquetStream(
            data,
            split,
            global_batch_size=ranks.global_batch_size if split == "train" else held_out,
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=seed,
            shuffle=split == "train",
            epochs=epochs if split == "train" else 1,
            lanes=lanes,
        )
        for split in _splits(data, needed)
    }


def open_interactions(
    data: str,
    spec: DatasetSpec,
    ranks: Ranks,
    *,
    columns: tuple[str, str],
    negatives: int,
    rows: int,
    epochs: int,
    seed: int,
    lanes: int,
) -> dict[str, Stream]:
    """``open_streams`` for interactions of a user with an item, the features ``columns``.

    If ``negatives`` is not 0, so many are drawn for each training row, with new ones in every epoch. With 0, prepared
    data must have its own negatives.
    """
    if data == SYNTHETIC:
        held_out = replace(ranks, global_batch_size=held_out_batch(ranks))
        return {
            "train": InteractionStream(spec, num_rows=rows * epochs, negatives=negatives, ranks=ranks, seed=seed),
            "val": InteractionStream(spec, split="val", ranks=held_out, seed=seed),
        }
    streams = open_streams(data, spec, ranks, rows=rows, epochs=epochs, seed=seed, lanes=lanes)
    if negatives:
        streams["train"] = WithNegatives(data, *columns, negatives, ranks=ranks, epochs=epochs, seed=seed, lanes=lanes)
    return streams


def _splits(data: str, needed: tuple[str, ...]) -> Mapping[str, Split]:
    """The splits of the prepared folder ``data``; ValueError unless it has those ``needed``."""
    splits = Manifest.load(data).splits
    for name in needed:
        if name not in splits:
            raise ValueError(
                f"prepared data must have a {name!r} split to train with: got {sorted(splits)} in {data}; "
                "prepare it again with that split"
            )
    return splits


def held_out_batch(ranks: Ranks, *, least: int = _EVALUATION_BATCH) -> int:
    """The batch size for evaluation: the least multiple of the training batch that is large enough."""
    return ranks.global_batch_size * -(-least // ranks.global_batch_size)
