"""Checks of a spec: whether a recipe can train on such data, and whether they mean what a run was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

Feature = DenseFeature | SparseFeature
Features = Sequence[Feature]
_MAY_DIFFER = ("column", "pooling_factor")  # of a feature: where its values come from and how many there are


def require(
    spec: DatasetSpec,
    what: str,
    *,
    labels: bool = False,
    numbers: bool = False,
    weights: bool = False,
    id_weights: bool = True,
) -> None:
    """Raises ValueError, with the field of the spec, when ``what`` cannot use such data.

    Args:
        spec: the data set
        what: the recipe, or what else uses the data, for the error
        labels: whether it can use several labels
        numbers: whether it can predict numbers, and not just 0 or 1
        weights: whether it can use weights of rows
        id_weights: whether it can use weights of ids
    """
    weighted = [feature.name for feature in spec.sparse if feature.weights]
    if spec.more_labels and not labels:
        names = [label.name for label in spec.more_labels]
        raise ValueError(f"data for {what} must have one label: got more_labels {names}; remove them or use train_dlrm")
    if spec.target == "number" and not numbers:
        raise ValueError(
            f"labels for {what} must be 0 or 1: got target 'number' of label {spec.label!r}; use train_dlrm"
        )
    if spec.weight and not weights:
        raise ValueError(f"rows for {what} must have no weight: got weight {spec.weight!r}; remove it from the spec")
    if weighted and not id_weights:
        raise ValueError(
            f"ids for {what} must have no weights: got weights of feature {weighted[0]!r}; remove them from the spec"
        )


def check_same_meaning(trained: DatasetSpec, found: DatasetSpec, data: str) -> None:
    """Raises ValueError, with the column, when prepared data mean something else than those that a run was trained on.

    Ids mean the same if vocabularies and table sizes are the same; numbers if they are scaled by the same numbers. The
    names of raw columns, how raw text is written and how often ids occur may differ.
    """
    kinds: list[tuple[Features, Features]] = [(trained.dense, found.dense), (trained.sparse, found.sparse)]
    for before, after in kinds:
        for one, other in zip(before, after, strict=False):
            _check_feature(one, other, data)
        if len(before) != len(after):
            extra = max(before, after, key=len)[min(len(before), len(after))]
            raise ValueError(
                f"data in {data} must have the features that the run was trained on: got {len(after)} of these "
                f"{len(before)}, which differ by {extra.name!r}; prepare them with the spec of the run"
            )
    for field in ("labels", "target", "weight", "history"):
        wanted, got = getattr(trained, field), getattr(found, field)
        if wanted != got:
            raise ValueError(
                f"{field} of {data} must be those of the run, {_shown(wanted)}: got {_shown(got)}; prepare the data "
                "with the spec of the run"
            )


def _check_feature(trained: Feature, found: Feature, data: str) -> None:
    wanted, got = ({**asdict(each), "weights": bool(getattr(each, "weights", ""))} for each in (trained, found))
    for field in wanted:
        if field not in _MAY_DIFFER and wanted[field] != got.get(field):
            raise ValueError(
                f"feature {found.name!r} of {data} must mean what it meant in training: got {field} "
                f"{_shown(got.get(field))}, trained with {_shown(wanted[field])}; prepare the data with the "
                "vocabularies and scales of the training data"
            )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
