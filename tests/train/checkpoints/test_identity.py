"""Whether a checkpoint is a run's: every field of every recipe's config, and every tensor."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.train.checkpoints.checkpoint import load_unsharded
from dlrm_torchrec.train.checkpoints.identity import MAY_CHANGE, identity_of
from dlrm_torchrec.train.checkpoints.marker import MARKER, marker_text, read_progress
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.checkpoints.storage import IoPathWriter
from tests.recipe import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("train_*.py"))
# What must be set besides, because other values of the field are refused.
BESIDES: dict[str, dict[str, Any]] = {
    "tables.max_rows": {"kind": "quotient_remainder"},
    "tables.budget": {"kind": "mixed_dimension"},
    "tables.assignments": {"file": "tables.json"},
    "schedule.decay_steps": {"decay_start": 50},
    "samples.held_out": {"candidates": 1},
    "samples.candidates": {"held_out": "time"},
    "samples.anchors": {"held_out": "time"},
}


def write(folder: Path, identity: dict[str, Any]) -> Progress:
    progress = Progress(identity=identity, lanes=1)
    (folder / MARKER).write_bytes(marker_text(progress, {}))
    return progress


def leaves(config: Any, above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, value and type of every single field of a config."""
    types = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, DatasetSpec):
            yield from leaves(value, f"{above}{field.name}.")
        else:
            yield f"{above}{field.name}", value, types[field.name]


def others(value: Any, kind: Any) -> list[Any]:
    """Other values of the type ``kind``, of which a config allows at least one."""
    if isinstance(value, DatasetSpec):
        return [dataclasses.replace(value, name="another")]
    if isinstance(value, bool):
        return [not value]
    if get_origin(kind) is Literal:
        return [each for each in get_args(kind) if each != value]
    if isinstance(value, dict):
        return [{**value, "another": "table_wise"}]
    if value is None:
        return [(1, 2)]
    if value == ():
        return [("another",), (7,)]  # texts or numbers
    if isinstance(value, tuple):
        return [(*value[:-1], *others(value[-1], type(value[-1])))]
    if isinstance(value, str):
        return [f"{value}x", f"2{value}"]  # a text, or a length of time
    return [value + step for step in (1, -1, *((0.25,) if isinstance(value, float) else ()))]


def replaced(config: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    return dataclasses.replace(config, **{first: replaced(getattr(config, first), rest, value) if rest else value})


def allowed(config: Any, name: str, values: list[Any]) -> Iterator[Any]:
    """The config with each of the values that it does not refuse."""
    for value in values:
        with contextlib.suppress(ValueError, TypeError):
            yield replaced(config, name, value)


def may_change(name: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in MAY_CHANGE)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_checkpoint_is_refused_for_every_other_field_or_the_field_may_change(tmp_path: Path, recipe: str) -> None:
    default = load_training_recipe(recipe).Config()
    for name, value, kind in leaves(default):
        config = default
        for other, needed in BESIDES.get(name, {}).items():
            config = replaced(config, f"{name.partition('.')[0]}.{other}", needed)
        changes = list(allowed(config, name, others(value, kind)))
        assert changes, name
        for changed in changes:
            progress = write(tmp_path, identity_of(config, config.shape.to_json()))
            identity = identity_of(changed, changed.shape.to_json())
            if may_change(name):
                assert read_progress(str(tmp_path), identity) == progress
            else:
                shown = "spec.name" if name == "shape" else name
                with pytest.raises(ValueError, match=rf"^{re.escape(shown)} must be what the checkpoint .* was train"):
                    read_progress(str(tmp_path), identity)


def test_every_field_that_may_change_is_one_of_a_recipe() -> None:
    names = {name for recipe in RECIPES for name, *_ in leaves(load_training_recipe(recipe).Config())}
    unknown = [each for each in MAY_CHANGE if not any(name == each or name.startswith(f"{each}.") for name in names)]
    assert unknown == []


def test_what_a_recipe_names_besides_its_config_counts(tmp_path: Path) -> None:
    config = load_training_recipe("train_dlrm_local_embeddings").PRESETS["demo"]
    write(tmp_path, identity_of(config, {}, nodes=2))
    with pytest.raises(
        ValueError, match=r"nodes must be what the checkpoint .* was trained with, 2: got 4; restore it"
    ):
        read_progress(str(tmp_path), identity_of(config, {}, nodes=4))


def test_a_pooling_factor_measured_since_is_no_other_identity(tmp_path: Path) -> None:
    config = load_training_recipe("train_dlrm").PRESETS["demo"]

    def identity(rows: int = 9, **measured: float) -> dict[str, object]:
        spec = {"name": "small", "sparse": [{"name": "user", "rows": 5}, {"name": "tags", "rows": rows, **measured}]}
        return identity_of(config, spec)

    for saved in (identity(pooling_factor=1.0), identity()):
        progress = write(tmp_path, saved)
        for wanted in (identity(pooling_factor=2.5), identity()):
            assert read_progress(str(tmp_path), wanted) == progress
        with pytest.raises(
            ValueError,
            match=r"spec\.sparse\['tags'\]\.rows must be what .* was trained with, 9: got 8; prepare the data",
        ):
            read_progress(str(tmp_path), identity(rows=8, pooling_factor=1.0))


def layers(count: int, width: int = 2) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(count)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            layers(1),
            r"must hold no more tensors than this model has: got model\.1\.bias, one of 2 that it lacks; it",
        ),
        (layers(3), r"must hold model\.2\.weight of shape \(2, 2\): got no tensor of that name; it belongs to another"),
        (layers(2, 3), r"must hold model\.0\.weight of shape \(3, 3\): got one of shape \(2, 2\); it belongs to anot"),
    ],
)
def test_a_model_with_other_tensors_is_refused(tmp_path: Path, model: nn.Module, message: str) -> None:
    saved = layers(2)
    dcp.save({"model": saved.state_dict()}, storage_writer=IoPathWriter(str(tmp_path)), no_dist=True)
    write(tmp_path, {})
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=message):
        load_unsharded(model, str(tmp_path))
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    same = layers(2)
    load_unsharded(same, str(tmp_path))
    assert all(torch.equal(*pair) for pair in zip(saved.parameters(), same.parameters(), strict=True))
