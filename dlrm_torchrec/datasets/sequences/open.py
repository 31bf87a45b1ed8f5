"""The streams of a run that reads sequences: prepared histories, or synthetic users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dlrm_torchrec.datasets.open import SYNTHETIC
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.sequences.browsing import Browsing, BrowsingStream
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.crossed import CrossedInterests
from dlrm_torchrec.datasets.sequences.log import EventLog, history_of
from dlrm_torchrec.datasets.sequences.next_items import NextItemStream
from dlrm_torchrec.datasets.sequences.samples import LAST, Window, find_samples
from dlrm_torchrec.datasets.sequences.stored import read_log, read_windows
from dlrm_torchrec.datasets.sequences.stream import SequenceStream
from dlrm_torchrec.datasets.sequences.synthetic import Interests, InterestStream
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.schema import DatasetSpec

_TRAINED_SHARE = 0.9  # of the events of synthetic users
_END_S = 1 << 62


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
    log, interests = open_log(data, spec, users=users, seed=seed)
    kind: Callable[..., SequenceStream] = partial(SequenceStream, spec)
    if interests is None:
        windows = _windows(data, config)
    else:
        middle = int(np.quantile(log.times, _TRAINED_SHARE))
        windows, kind = {"train": Window(0, middle), "val": Window(middle, _END_S)}, partial(InterestStream, interests)
    return {
        split: kind(
            find_samples(log, history_of(spec), config, split=split, window=window),
            ranks,
            **_options(config, split, epochs=epochs, seed=seed),
        )
        for split, window in windows.items()
    }


def open_log(data: str, spec: DatasetSpec, *, users: int, seed: int) -> tuple[EventLog, Interests | None]:
    """All events of the prepared folder ``data``; if it is 'synthetic', those of so many users, and their interests.

    Raises ValueError when no action is positive, so that no candidate has the label 1.
    """
    if not history_of(spec).positive:
        raise ValueError(
            f"histories must have a positive action to be told: got none in {data}; prepare the log with --positive, "
            "or rank next items with train_hstu_next_item"
        )
    if data != SYNTHETIC:
        return read_log(Manifest.load(data), data), None
    interests = (CrossedInterests if history_of(spec).marks else Interests)(spec, users, seed)
    return interests.log(), interests


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
    if config.candidates > 1:
        raise ValueError(f"samples of next items must have one candidate: got {config.candidates}; set it to 1")
    kind: Callable[..., NextItemStream] = partial(NextItemStream, spec)
    if data == SYNTHETIC:
        browsing = Browsing(spec, users, seed)
        log, config, kind = browsing.log(), replace(config, held_out="last"), partial(BrowsingStream, browsing)
    else:
        log = read_log(Manifest.load(data), data)
    return {
        split: kind(
            find_samples(log, history_of(spec), config, split=split, window=window),
            ranks,
            training=split == "train",
            draws=draws,
            **_options(config, split, epochs=epochs, seed=seed),
        )
        for split, window in _windows(data, config).items()
    }


def _windows(data: str, config: SamplesConfig) -> dict[str, Window]:
    """The times of the candidates of each split."""
    if config.held_out == "last":
        return dict.fromkeys(LAST, Window(0, _END_S))
    return read_windows(Manifest.load(data), data)


def _options(config: SamplesConfig, split: str, *, epochs: int, seed: int) -> dict[str, Any]:
    """How a stream goes through the samples of a split."""
    is_train = split == "train"
    return {
        "batch_by": config.batch_by,
        "shuffle": config.shuffle and is_train,
        "epochs": epochs if is_train else 1,
        "seed": seed,
    }
