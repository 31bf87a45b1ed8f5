"""Scores the candidates of a prepared folder of histories, cut as in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.open import open_sequences
from dlrm_torchrec.datasets.spec_checks import check_same_meaning
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.inference.batch.score import write_table
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.inference.sequences.scorer import arguments
from dlrm_torchrec.schema import DatasetSpec

BATCH_SAMPLES = 256


def score_histories(
    predictor: Predictor, folder: str, output: Path, *, split: str, scored: Callable[[int], None]
) -> int:
    """Writes a row for each candidate of a split, user after user in the order of the folder; the number of rows.

    It has the number of the user, counted from 0 in the folder, the candidate's ``time`` in seconds, the column
    "probability", or one for each label, and its ``label``. ``scored`` is told the number of rows so far.

    Raises ValueError when the package is for rows, or when the folder means something else than its training data.
    """
    spec = DatasetSpec.from_json(predictor.spec)
    if spec.history is None:
        raise ValueError(f"input must be a file of raw rows: got the folder {folder}; name a file")
    found = Manifest.load(folder).spec
    check_same_meaning(spec, found, folder)
    settings = predictor.manifest["samples"]
    samples = replace(
        SamplesConfig(**settings | {name: tuple(settings[name]) for name in ("pools", "anchors")}), batch_by="rows"
    )
    streams = open_sequences(folder, found, Ranks(BATCH_SAMPLES, 0, 1), samples, users=0, epochs=1, seed=0)
    if split not in streams:
        raise ValueError(f"split must be one of {folder}: got {split!r}; name one of {sorted(streams)}")
    names = ["probability"] if predictor.is_single_probability else list(predictor.labels)
    parts, count = list[pa.Table](), 0
    for batch in streams[split].batches():
        with torch.inference_mode():
            predictions, _ = predictor.program(*arguments(batch))
        is_candidate = batch.actions == 0
        columns: dict[str, Any] = {
            "user": batch.users.repeat_interleave(batch.num_candidates).numpy(),
            "time": batch.times[is_candidate].numpy(),
            **dict(zip(names, predictions.T.numpy(), strict=True)),
            "label": batch.labels.numpy(),
        }
        parts.append(pa.table(columns))
        count += batch.num_rows
        scored(count)
    write_table(output, pa.concat_tables(parts).sort_by([("user", "ascending"), ("time", "ascending")]))
    return count
