"""What a run should know of its histories before it builds a model: which samples it will cut from them."""

from __future__ import annotations

from dataclasses import replace

from dlrm_torchrec.datasets.open import SYNTHETIC
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.log import history_of
from dlrm_torchrec.datasets.sequences.next_items import next_item_spec
from dlrm_torchrec.datasets.sequences.open import check_next_items, labelled_history, stored_samples
from dlrm_torchrec.datasets.sequences.samples import labels_of
from dlrm_torchrec.datasets.summary import Summary, check_classes, summarise
from dlrm_torchrec.schema import DatasetSpec


def summarise_samples(data: str, shape: DatasetSpec, config: SamplesConfig) -> Summary:
    """``summarise`` with the spec of samples, which have fewer ids than all that users did, and candidates as rows.

    Nothing is counted of synthetic histories. Raises ValueError where ``summarise`` does, when the data have no
    histories, no positive action, or other actions than ``config`` names, when a split has no candidates, and when
    all candidates of ``train`` or of ``val`` have the same label.
    """
    summary = _of_samples(data, shape, config)
    history = labelled_history(data, summary.spec)
    if data == SYNTHETIC:
        return summary
    splits = stored_samples(data, config)
    rows = {name: len(samples.candidates) for name, samples in splits.items()}
    positives = {
        name: int(labels_of(samples.log.actions[samples.candidates], history).sum()) for name, samples in splits.items()
    }
    check_classes(rows, positives, f"candidates of {data}; name other samples.anchors, or prepare the data otherwise")
    return replace(summary, rows=rows, positives=positives, samples=len(splits["train"]))


def summarise_next_items(data: str, shape: DatasetSpec, config: SamplesConfig) -> Summary:
    """``summarise`` with the spec of next items, and the items that are told as rows: in ``train``, all but the first.

    Nothing is counted of synthetic histories. Raises ValueError as ``summarise_samples`` does, but for labels, and
    unless samples have one candidate.
    """
    check_next_items(config)
    summary = _of_samples(data, shape, config)
    summary = replace(summary, spec=next_item_spec(summary.spec))
    if data == SYNTHETIC:
        return summary
    splits = stored_samples(data, config)
    told = int(splits["train"].tokens().sum()) - len(splits["train"])
    rows = {name: told if name == "train" else len(samples) for name, samples in splits.items()}
    return replace(summary, rows=rows, positives={}, samples=len(splits["train"]))


def _of_samples(data: str, shape: DatasetSpec, config: SamplesConfig) -> Summary:
    summary = summarise(data, shape)
    config.check(history_of(summary.spec).actions)
    return replace(summary, spec=config.of(summary.spec))
