"""What a recipe cannot use, and data that mean something else than those of a run, are refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dlrm_torchrec.datasets.spec_checks import check_same_meaning, require
from dlrm_torchrec.schema import DatasetSpec, Label
from tests.rich_data import PLAIN, RATINGS, RICH

ALL = {"labels": True, "numbers": True, "weights": True}


def test_what_can_be_used_passes() -> None:
    require(RICH, "train_dlrm", **ALL)
    require(RATINGS, "train_dlrm", **ALL)
    require(PLAIN, "train_fm")


@pytest.mark.parametrize(
    ("spec", "cannot", "message"),
    [
        (RICH, "labels", r"data for train_x must have one label: got more_labels \['buy'\]; remove them or use train_"),
        (RATINGS, "numbers", "labels for train_x must be 0 or 1: got target 'number' of label 'click'; use train_dlrm"),
        (RICH, "weights", "rows for train_x must have no weight: got weight 'importance'; remove it from the spec"),
        (RICH, "id_weights", "ids for train_x must have no weights: got weights of feature 'tags'; remove them"),
    ],
)
def test_what_a_recipe_cannot_use_is_named(spec: DatasetSpec, cannot: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require(spec, "train_x", **(ALL | {cannot: False}))


def changed(kind: str, name: str, **fields: Any) -> DatasetSpec:
    features = [replace(f, **fields) if f.name == name else f for f in getattr(RICH, kind)]
    parts: dict[str, Any] = {kind: tuple(features)}
    return replace(RICH, **parts)


def test_what_is_measured_and_where_values_come_from_may_differ() -> None:
    check_same_meaning(RICH, RICH, "d")
    check_same_meaning(RICH, replace(RICH, name="tomorrow", decimal=",", missing=("?",)), "d")
    check_same_meaning(RICH, changed("sparse", "tags", pooling_factor=9.0, column="labels", weights="others"), "d")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            changed("sparse", "city", vocabulary="b"),
            "feature 'city' of d must mean .*: got vocabulary 'b', trained with",
        ),
        (changed("sparse", "city", rows=21), "feature 'city' of d must mean .*: got rows 21, trained with 20; prepare"),
        (
            changed("sparse", "tags", weights=""),
            "feature 'tags' of d must mean .*: got weights False, trained with True",
        ),
        (
            changed("dense", "y", mean=0.5),
            "feature 'y' of d must mean .*: got mean 0.5, trained with None; prepare the",
        ),
        (changed("dense", "y", log1p=True), "feature 'y' of d must mean .*: got log1p True, trained with False"),
        (replace(RICH, dense=RICH.dense[::-1]), "feature 'y' of d must mean .*: got name 'y', trained with 'x'"),
        (replace(RICH, sparse=RICH.sparse[:-1]), "data in d must have the features .*: got 3 of these 4, .* 'history'"),
        (replace(RICH, more_labels=(Label(name="sold"),)), "labels of d must be those of the run, .*buy.*: got .*sold"),
        (replace(RICH, target="number"), "target of d must be those of the run, 'binary': got 'number'"),
    ],
)
def test_another_meaning_is_named(found: DatasetSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_same_meaning(RICH, found, "d")
