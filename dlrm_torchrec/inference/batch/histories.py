"""Scores the candidates, or tells the best items, of a prepared folder of histories, cut as in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.next_items import next_item_spec
from dlrm_torchrec.datasets.sequences.open import open_next_items, open_sequences
from dlrm_torchrec.datasets.sequences.stream import SequenceStream
from dlrm_torchrec.datasets.spec_checks import check_same_meaning
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.inference.batch.score import write_table
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.inference.sequences.history_encoder import HistoryInputs
from dlrm_torchrec.inference.sequences.scorer import arguments
from dlrm_torchrec.schema import DatasetSpec

BATCH_SAMPLES = 256


def score_histories(
    predictor: Predictor, folder: str, output: Path, *, split: str, scored: Callable[[int], None]
) -> int:
    """Writes a row for each candidate of a split, user after user in the order of the folder; the number of rows.

    It has the number of the user, counted from 0 in the folder, the candidate's ``time`` in seconds, the column
    "probability", or one for each label, and its ``label``. If the model ranks items, the row has the lists "items" and
    "scores" of the best ones in their place, and "came", the item that came. ``scored`` is told the number of rows so
    far.

    Raises ValueError when the package is for rows, or when the folder means something else than its training data.
    """
    spec = DatasetSpec.from_json(predictor.spec)
    if spec.history is None:
        raise ValueError(f"input must be a file of raw rows: got the folder {folder}; name a file")
    streams = _open(predictor, folder)
    if split not in streams:
        raise ValueError(f"split must be one of {folder}: got {split!r}; name one of {sorted(streams)}")
    stream = streams[split]
    check_same_meaning(spec, stream.spec, folder)
    parts, count = list[pa.Table](), 0
    for batch in stream.batches():
        is_candidate = batch.actions == 0
        columns: dict[str, Any] = {
            "user": batch.users.repeat_interleave(batch.num_candidates).numpy(),
            "time": batch.times[is_candidate].numpy(),
        }
        if predictor.ranked:
            inputs = _inputs(batch, predictor.ranked)
            columns |= dict(zip(predictor.answers, predictor.run(inputs).columns(), strict=True))
            columns["came"] = predictor.items.values_of(inputs.ids[0][is_candidate.numpy()])
        else:
            with torch.inference_mode():
                predictions, _ = predictor.program(*arguments(batch))
            columns |= dict(zip(predictor.answers, predictions.T.numpy(), strict=True))
            columns["label"] = batch.labels.numpy()
        parts.append(pa.table(columns))
        count += batch.num_rows
        scored(count)
    write_table(output, pa.concat_tables(parts).sort_by([("user", "ascending"), ("time", "ascending")]))
    return count


def _open(predictor: Predictor, folder: str) -> Mapping[str, SequenceStream]:
    """The streams of the splits, cut as the package says."""
    spec, settings = Manifest.load(folder).spec, predictor.manifest["samples"]
    samples = replace(
        SamplesConfig(**settings | {name: tuple(settings[name]) for name in ("pools", "anchors")}), batch_by="rows"
    )
    ranks = Ranks(BATCH_SAMPLES, 0, 1)
    if predictor.ranked:
        return open_next_items(folder, next_item_spec(spec), ranks, samples, draws=0, users=0, epochs=1, seed=0)
    return open_sequences(folder, spec, ranks, samples, users=0, epochs=1, seed=0)


def _inputs(batch: SequenceBatch, item: str) -> HistoryInputs:
    """The inputs that the program takes of a batch of next items without padding."""
    return HistoryInputs(
        ids=(batch.sparse_features[item].values().numpy(),),
        kinds=("token",),
        times=batch.times.numpy(),
        actions=batch.actions.numpy(),
        lengths=batch.lengths.numpy(),
        num_candidates=batch.num_candidates.numpy(),
        groups=batch.num_candidates.numpy(),
        unseen=np.zeros(1, np.int64),
    )
