"""Loads a package and tests it before it is used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_torchrec.inference.predictor import TOP, Predictor
from dlrm_torchrec.inference.sequences.history_encoder import ACTION, ASKED, CANDIDATES, TIME
from dlrm_torchrec.schema import DatasetSpec

WARM_UP_RUNS = 3  # TorchScript observes the first runs of a model and compiles it in the next ones
_TIME = 1_700_000_000  # seconds since 1970, in 2023


class PackageError(ValueError):
    """Says why a package cannot be used."""


def load_package(path: Path, *, top: int = TOP) -> Predictor:
    """The predictor of a folder, after it has predicted rows of all kinds of values; PackageError when that fails."""
    try:
        predictor = Predictor.load(path, top=top)
        try_out(predictor, path)
    except ValueError as error:
        raise PackageError(str(error)) from error
    except Exception as error:  # libraries raise all kinds of errors for a damaged file
        raise PackageError(f"package {path} must give predictions: got {error!r}; export it again") from error
    return predictor


def try_out(predictor: Predictor, path: Path) -> None:
    """Predict rows of all kinds of values. Raises PackageError, which names ``path``, for outputs that are no numbers.

    TorchScript has compiled the program afterwards.
    """
    spec = DatasetSpec.from_json(predictor.manifest["spec"])
    nulls: dict[str, list[Any]] = {column: [None] for column in predictor.columns}
    rows = [nulls, _row(spec, text=False), _row(spec, text=True)]
    if spec.history is not None:
        marks = _marks(predictor, spec)
        rows = [with_history(row, spec, nulls) | marks for row in rows]
        if predictor.ranked:  # without an event of a known item, there is no next one
            known = predictor.items.values_of(predictor.items.ids[:1]).to_pylist()
            rows = [rows[1] | {spec.sparse[0].raw: [known * 2]}]
    for row in rows:
        inputs = predictor.encode(row)
        for _ in range(WARM_UP_RUNS):
            predictions = predictor.run(inputs).predictions
        count = len(predictions) if predictor.ranked else len(inputs)
        if predictions.shape != (count, len(predictor.labels)) or not np.isfinite(predictions).all():
            raise PackageError(
                f"package {path} must give a number for each row and label: got {predictions}; export it again"
            )


def with_history(row: Mapping[str, list[Any]], spec: DatasetSpec, columns: Collection[str]) -> dict[str, list[Any]]:
    """A user with as many events as ``row`` has values in its lists, and two candidates; it has a user and items."""
    history = spec.history
    assert history is not None
    features = {feature.name: feature for feature in spec.sparse}
    users = [features[name].raw for name in history.users(list(features))]
    made = {column: row[column] for column in users}
    if history.user and made[features[history.user].raw] == [None]:
        made[features[history.user].raw] = [0]
    for feature in (features[name] for name in history.events):
        made[feature.raw] = row[feature.raw]
        absent = 0 if feature.name == history.item else None
        made[f"{CANDIDATES}{feature.raw}"] = [(row[feature.raw][0] or [absent])[:1] * 2]
    count = len(row[features[history.item].raw][0] or [])
    made |= {TIME: [[_TIME] * count], ACTION: [[history.actions[0]] * count], ASKED: [_TIME + 1]}
    return {name: values for name, values in made.items() if name in columns}


def _marks(predictor: Predictor, spec: DatasetSpec) -> dict[str, list[Any]]:
    """A known value of each mark that a request has for its two candidates."""
    files, found = predictor.manifest["vocabularies"], {}
    for mark in spec.marks:
        value = predictor.vocabularies[files[mark.name]].values[0].as_py() if mark.name in files else 0
        found[f"{CANDIDATES}{mark.raw}"] = [[value] * 2]
    return {name: values for name, values in found.items() if name in predictor.columns}


def _row(spec: DatasetSpec, *, text: bool) -> dict[str, list[Any]]:
    """A row without missing values; categories are numbers, or texts wherever a text is one."""
    row = {}
    for name in spec.raw_features:
        dense = [feature for feature in spec.dense if feature.raw == name]
        sparse = [feature for feature in spec.sparse if feature.raw == name]
        is_weight = any(feature.weights == name for feature in spec.sparse)
        parts = {feature.part for feature in dense} | {feature.part for feature in sparse}
        is_time = not parts.isdisjoint({"days", "hour", "weekday"})
        may_be_text = not (dense or is_weight) and all(
            feature.part == "value" and feature.encoding in ("hash", "managed", "vocab") for feature in sparse
        )
        value = _TIME if is_time else "text" if text and may_be_text else 1
        is_list = is_weight or any(feature.multi_hot for feature in sparse)
        row[name] = [[value, value]] if is_list else [value]
    return row
