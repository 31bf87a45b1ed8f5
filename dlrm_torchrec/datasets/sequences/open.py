"""The data of a run that reads sequences: what it should know of them before it builds a model, and its streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from dlrm_torchrec.datasets.open import SYNTHETIC
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.sequences.browsing import Browsing, BrowsingStream
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.crossed import CrossedInterests
from dlrm_torchrec.datasets.sequences.log import EventLog, history_of
from dlrm_torchrec.datasets.sequences.next_items import NextItemStream, items_of, next_item_spec
from dlrm_torchrec.datasets.sequences.samples import LAST, Samples, Window, find_samples, labels_of, of_new_items
from dlrm_torchrec.datasets.sequences.stored import read_log, read_windows
from dlrm_torchrec.datasets.sequences.stream import SequenceStream
from dlrm_torchrec.datasets.sequences.synthetic import Interests, InterestStream
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.summary import Summary, check_classes, digest, summarise
from dlrm_torchrec.schema import DatasetSpec, History

_TRAINED_SHARE = 0.9  # of the events of synthetic users
_END_S = 1 << 62


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
    return replace(_counted(summary, splits), rows=rows, positives=positives)


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
    stored = stored_samples(data, config, known_items=True)
    splits = _next_items(data, stored)
    told = int(splits["train"].tokens().sum()) - len(splits["train"])
    rows = {name: told if name == "train" else len(samples) for name, samples in splits.items()}
    again = {name: len(stored[name]) - len(samples) for name, samples in splits.items()}
    return replace(_counted(summary, splits), rows=rows, positives={}, again=again)


def _next_items(data: str, stored: Mapping[str, Samples]) -> Mapping[str, Samples]:
    """Without the held-out items that their users had before, which no list of new items can name.

    Raises ValueError when a split has no others.
    """
    item = history_of(Manifest.load(data).spec).item
    splits = {
        split: samples if split == "train" else of_new_items(samples, samples.log.events[item])
        for split, samples in stored.items()
    }
    for split, samples in splits.items():
        if not len(samples):
            raise ValueError(
                f"split {split!r} must have next items that are new to their users: got {len(stored[split])} that come "
                f"again in {data}; train_hstu tells what users do with items that they know"
            )
    return splits


def _counted(summary: Summary, splits: Mapping[str, Samples]) -> Summary:
    users = {name: len(np.unique(samples.log.user_of[samples.moments])) for name, samples in splits.items()}
    return replace(summary, users=users, samples=len(splits["train"]))


def _of_samples(data: str, shape: DatasetSpec, config: SamplesConfig) -> Summary:
    summary = summarise(data, shape)
    config.check(history_of(summary.spec).actions)
    return replace(summary, spec=config.of(summary.spec))


def open_sequences(
    data: str,
    spec: DatasetSpec,
    ranks: Ranks,
    config: SamplesConfig,
    *,
    users: int,
    epochs: int,
    seed: int,
) -> dict[str, SequenceStream]:
    """One stream per split, always with ``train`` and ``val``; only ``train`` is shuffled and repeated.

    Args:
        data: a prepared folder of histories, or ``synthetic``
        spec: of the data
        ranks: the global batch, in samples on average, and this rank's part of it
        config: how histories are cut into samples
        users: the number of synthetic users
        epochs: passes over the samples of ``train``
        seed: of synthetic users, and of the order of samples
    """
    if data == SYNTHETIC:
        log, interests = open_log(data, spec, users=users, seed=seed)
        assert interests is not None
        middle = int(np.quantile(log.times, _TRAINED_SHARE))
        windows = {"train": Window(0, middle), "val": Window(middle, _END_S)}
        splits: Mapping[str, Samples] = _cut(log, history_of(spec), config, windows)
        kind: Callable[..., SequenceStream] = partial(InterestStream, interests)
    else:
        labelled_history(data, spec)
        splits, kind = stored_samples(data, config), partial(SequenceStream, spec)
    return {
        split: kind(samples, ranks, **_options(config, split, epochs=epochs, seed=seed))
        for split, samples in splits.items()
    }


def open_log(data: str, spec: DatasetSpec, *, users: int, seed: int) -> tuple[EventLog, Interests | None]:
    """All events of the prepared folder ``data``; if it is 'synthetic', those of so many users, and their interests.

    Raises ValueError where ``labelled_history`` does.
    """
    labelled_history(data, spec)
    if data != SYNTHETIC:
        return read_log(Manifest.load(data), data), None
    interests = (CrossedInterests if history_of(spec).marks else Interests)(spec, users, seed)
    return interests.log(), interests


def labelled_history(data: str, spec: DatasetSpec) -> History:
    """The histories of ``spec``, that of ``data``. Raises ValueError when no action gives candidates the label 1."""
    history = history_of(spec)
    if not history.positive:
        raise ValueError(
            f"histories must have a positive action to be told: got none in {data}; prepare the log with --positive, "
            "or rank next items with train_hstu_next_item"
        )
    return history


def stored_samples(data: str, config: SamplesConfig, *, known_items: bool = False) -> Mapping[str, Samples]:
    """The samples of each split of the prepared folder ``data``, with all its events in memory.

    With ``known_items``, events of items that share the id of unseen or missing ones are left out: nobody can tell
    which of them comes next.

    Raises ValueError when a split has no candidates, and when the last events of users are held out but the
    vocabularies are those of earlier events alone.
    """
    return _stored_samples(data, digest(Manifest.load(data)), config, known_items)


@lru_cache(1)  # a run counts them before it builds a model, and reads them after that
def _stored_samples(
    data: str,
    content: str,  # noqa: ARG001
    config: SamplesConfig,
    known_items: bool,  # noqa: FBT001
) -> Mapping[str, Samples]:
    manifest = Manifest.load(data)
    windows = _last(config) or read_windows(manifest, data)
    if (
        config.held_out == "last"
        and manifest.windows
        and any(each.encoding == "vocab" for each in manifest.spec.sparse)
    ):
        raise ValueError(
            "vocabularies must be those of all events where samples.held_out is last: got a folder whose events for "
            f"validation are held out by time, {data}; prepare it with --val_share 0, or set samples.held_out to time"
        )
    log, history = read_log(manifest, data), history_of(manifest.spec)
    if known_items:
        item = next(feature for feature in manifest.spec.sparse if feature.name == history.item)
        log = log.of(log.events[history.item] >= items_of(item)[0])
    return _cut(log, history, config, windows)


def _cut(
    log: EventLog, history: History, config: SamplesConfig, windows: Mapping[str, Window]
) -> Mapping[str, Samples]:
    return {split: find_samples(log, history, config, split=split, window=window) for split, window in windows.items()}


def open_next_items(
    data: str,
    spec: DatasetSpec,
    ranks: Ranks,
    config: SamplesConfig,
    *,
    draws: int,
    users: int,
    epochs: int,
    seed: int,
) -> dict[str, NextItemStream]:
    """One stream per split, always with ``train`` and ``val``; only ``train`` is shuffled and repeated.

    Args:
        data: a prepared folder of histories, or ``synthetic``
        spec: that of ``next_item_spec``
        ranks: the global batch, in samples on average, and this rank's part of it
        config: how histories are cut into samples, of one candidate each; synthetic users hold out their last events
        draws: items that those of a training batch are told from; 0 means all
        users: the number of synthetic users
        epochs: passes over the samples of ``train``
        seed: of synthetic users, of the order of samples, and of the drawn items
    """
    check_next_items(config)
    if data == SYNTHETIC:
        browsing, config = Browsing(spec, users, seed), replace(config, held_out="last")
        splits = _cut(browsing.log(), history_of(spec), config, _last(config))
        kind: Callable[..., NextItemStream] = partial(BrowsingStream, browsing)
    else:
        splits = _next_items(data, stored_samples(data, config, known_items=True))
        kind = partial(NextItemStream, spec)
    return {
        split: kind(
            samples,
            ranks,
            training=split == "train",
            draws=draws,
            **_options(config, split, epochs=epochs, seed=seed),
        )
        for split, samples in splits.items()
    }


def check_next_items(config: SamplesConfig) -> None:
    """Raises ValueError unless samples have one candidate, the next item."""
    if config.candidates > 1:
        raise ValueError(f"samples of next items must have one candidate: got {config.candidates}; set it to 1")


def _last(config: SamplesConfig) -> dict[str, Window]:
    """The times of the candidates of each split if they are the last events of users; else none."""
    return dict.fromkeys(LAST, Window(0, _END_S)) if config.held_out == "last" else {}


def _options(config: SamplesConfig, split: str, *, epochs: int, seed: int) -> dict[str, Any]:
    """How a stream goes through the samples of a split."""
    is_train = split == "train"
    return {
        "batch_by": config.batch_by,
        "shuffle": config.shuffle and is_train,
        "epochs": epochs if is_train else 1,
        "seed": seed,
    }
