"""A recipe from the outside: what other programs need of its file, and the config of a run that it made.

A recipe is a Python file. ``plan_sharding`` and the launcher take any ``TrainingRecipe``; ``evaluate``,
``quantize_dlrm`` and ``secret_shared_layer`` take any ``RankingRecipe``, and the first two any ``SequenceRecipe``, and
any ``InteractionRecipe`` or ``NextItemRecipe``, which rank items. A copy that keeps these names works with all of them,
whatever else is changed in it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.train.config import CheckpointConfig, OptimizerConfig, Speed

if TYPE_CHECKING:  # torch, which the command line does without
    import torch

    from dlrm_torchrec.datasets.sequences.next_items import NextItemStream
    from dlrm_torchrec.datasets.sequences.stream import SequenceStream
    from dlrm_torchrec.datasets.stream import Ranks, Stream
    from dlrm_torchrec.embeddings.tables import Tables
    from dlrm_torchrec.train.task import RankingTask


class TrainingConfig(Protocol):
    """The fields that other programs read of a recipe's ``Config``, a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    data: str  # a prepared folder, or "synthetic"
    shape: DatasetSpec  # of synthetic rows
    rows: int  # of a synthetic epoch
    epochs: int
    batch_size: int  # over all ranks
    tables: TablesConfig
    sparse: OptimizerConfig  # of the tables
    sharding: ShardingConfig
    speed: Speed
    checkpoint: CheckpointConfig
    run_dir: str  # of runs
    seed: int


@runtime_checkable
class SequenceConfig(Protocol):
    """The ``Config`` of a recipe whose rows are histories: it plans, and trains, the spec that ``samples`` leaves."""

    @property
    def samples(self) -> SamplesConfig:
        """How histories are cut; ``samples.of`` gives the spec of samples."""


class TrainingRecipe(Protocol):
    """The names that a file must define to be planned and launched as a training recipe."""

    Config: type[Any]  # with the fields of TrainingConfig
    PRESETS: Mapping[str, Any]  # configs by name, the default first

    def build(self, cfg: Any, spec: DatasetSpec, world_size: int, device: torch.device) -> tuple[RankingTask, Tables]:
        """The model with its loss, and its tables on meta, marked with their optimizer."""

    def main(self, preset: str, cfg: Any) -> dict[str, float]:
        """Train; the final metrics."""


class RankingRecipe(TrainingRecipe, Protocol):
    """The names that a file must define to be evaluated and quantised: a training recipe for rows with labels.

    ``from dlrm_torchrec.datasets.open import open_streams`` is enough for the last one.
    """

    def open_streams(
        self,
        data: str,
        spec: DatasetSpec,
        ranks: Ranks,
        *,
        rows: int,
        epochs: int,
        seed: int,
        lanes: int,
        needed: tuple[str, ...] = ...,
    ) -> dict[str, Stream]:
        """A stream of labelled rows per split."""


class SequencesConfig(TrainingConfig, Protocol):
    """The fields that other programs read of the ``Config`` of a recipe of sequences."""

    samples: SamplesConfig


class SequenceRecipe(TrainingRecipe, Protocol):
    """The names that a file must define to be evaluated and quantised if it reads histories.

    ``from dlrm_torchrec.datasets.sequences.open import open_sequences`` is enough for the last one.
    """

    def open_sequences(
        self,
        data: str,
        spec: DatasetSpec,
        ranks: Ranks,
        config: SamplesConfig,
        *,
        users: int,
        epochs: int,
        seed: int,
    ) -> dict[str, SequenceStream]:
        """A stream of samples per split."""


class InteractionsConfig(TrainingConfig, Protocol):
    """The fields that other programs read of the ``Config`` of a recipe of interactions."""

    columns: tuple[str, str]  # the features of the user and of the item


class InteractionRecipe(TrainingRecipe, Protocol):
    """The names that a file must define to be evaluated and quantised if it ranks the items of the rows of each user.

    ``from dlrm_torchrec.datasets.open import open_interactions`` is enough for the last one.
    """

    def open_interactions(
        self,
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
        """A stream of rows per split."""


class NextItemRecipe(TrainingRecipe, Protocol):
    """The names that a file must define to be evaluated and quantised if it reads histories and ranks all items.

    ``from dlrm_torchrec.datasets.sequences.open import open_next_items`` is enough for the last one.
    """

    def open_next_items(
        self,
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
        """A stream of samples per split."""


RankingItems = InteractionRecipe | NextItemRecipe
_RANKING_ITEMS = {  # what a recipe defines that ranks items, and what else it must
    "open_interactions": (InteractionRecipe, InteractionsConfig),
    "open_next_items": (NextItemRecipe, SequencesConfig),
}


def load_training_recipe(name: str) -> TrainingRecipe:
    """The recipe of that name, or in that file. Raises ValueError when it is not a ``TrainingRecipe``."""
    return cast(TrainingRecipe, _checked(load_recipe(name), name, TrainingRecipe))


def load_ranking_recipe(name: str) -> RankingRecipe:
    """The recipe of that name, or in that file. Raises ValueError when it is not a ``RankingRecipe``."""
    return cast(RankingRecipe, _checked(load_recipe(name), name, RankingRecipe))


def load_scoring_recipe(name: str) -> RankingRecipe | SequenceRecipe:
    """The recipe of that name, or in that file: of sequences if it defines ``open_sequences``, else of rows.

    Raises ValueError when it is not one, or goes over windows.
    """
    module = load_recipe(name)
    if hasattr(getattr(module, "Config", None), "windows"):
        raise ValueError(
            f"recipe must train on splits: got {name!r}, which goes over windows; its runs are judged by evaluate, and "
            "--publish.folder writes their packages"
        )
    if _reads_sequences(module):
        return cast(SequenceRecipe, _checked(module, name, SequenceRecipe, SequencesConfig))
    return cast(RankingRecipe, _checked(module, name, RankingRecipe))


def load_judged_recipe(name: str) -> RankingRecipe | SequenceRecipe | RankingItems:
    """The recipe of that name, or in that file, whose runs are judged by the splits of their data.

    Raises ValueError when it is none, or goes over windows.
    """
    module = load_recipe(name)
    for opener, contract in _RANKING_ITEMS.items():
        if hasattr(module, opener):
            return cast(RankingItems, _checked(module, name, *contract))
    return load_scoring_recipe(name)


def ranks_items(recipe: object) -> bool:
    """Whether runs of ``recipe`` are judged by the ranks of users' next items, and not by labels."""
    return any(hasattr(recipe, opener) for opener in _RANKING_ITEMS)


def open_splits(
    recipe: RankingRecipe | SequenceRecipe | RankingItems,
    cfg: Any,
    ranks: Ranks,
    *,
    data: str,
    spec: DatasetSpec,
    epochs: int = 1,
) -> Mapping[str, Stream | SequenceStream]:
    """A stream per split, as the run of the config ``cfg`` reads them, but of ``data`` that ``spec`` describes.

    Nothing is drawn: next items are told from all items, and interactions have the negatives that their data have.
    """
    if hasattr(recipe, "open_next_items"):
        opened_items = cast(NextItemRecipe, recipe).open_next_items
        return opened_items(data, spec, ranks, cfg.samples, draws=0, users=cfg.rows, epochs=epochs, seed=cfg.seed)
    if hasattr(recipe, "open_interactions"):
        interactions = cast(InteractionRecipe, recipe).open_interactions
        return interactions(
            data, spec, ranks, columns=cfg.columns, negatives=0, rows=cfg.rows, epochs=epochs, seed=cfg.seed,
            lanes=ranks.world_size,
        )  # fmt: skip
    if _reads_sequences(recipe):
        opened = cast(SequenceRecipe, recipe).open_sequences
        return opened(data, spec, ranks, cfg.samples, users=cfg.rows, epochs=epochs, seed=cfg.seed)
    opened_rows = cast(RankingRecipe, recipe).open_streams
    return opened_rows(
        data, spec, ranks, rows=cfg.rows, epochs=epochs, seed=cfg.seed, lanes=ranks.world_size, needed=("train",)
    )


def _reads_sequences(recipe: object) -> bool:
    return hasattr(recipe, "open_sequences")


def load_recipe(name: str) -> ModuleType:
    """The file of a recipe as a module: one of this project by its name, or any by its path.

    Raises ValueError when there is no such file.
    """
    ours = Path(__file__).parent / "recipes" / f"{name}.py"
    path = ours if ours.exists() else Path(name)
    if not path.is_file():
        raise ValueError(f"recipe must be the name of one of this project, or a file: got {name!r}; try train_dlrm")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def read_config(recipe: TrainingRecipe, run: str) -> Any:
    """The config of the run in folder ``run``, which ``recipe`` trained. Raises ValueError when there is none."""
    path = f"{run}/config.json"
    if not g_pathmgr.exists(path):
        raise ValueError(f"run must be the folder of a run, with config.json: got {run!r}; name one under runs/")
    try:
        with g_pathmgr.open(path, "rb") as stream:
            record = json.loads(stream.read())
        if not isinstance(record, dict):
            raise ValueError("no object")
        return restore(recipe.Config, record)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} must be the config of a run of this recipe: got {error!r}; name the recipe that trained it, or "
            "start its run again, which writes the file"
        ) from error


Value = TypeVar("Value")


def restore(kind: type[Value], record: Any) -> Value:
    """A value of type ``kind``, a dataclass mostly, from the JSON of its ``asdict``; what is not in it is the default.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Config:
    ...     widths: tuple[int, ...]
    ...     window: tuple[int, int] | None = None
    >>> restore(Config, {"widths": [64, 16]})
    Config(widths=(64, 16), window=None)
    """
    return cast(Value, _restored(kind, record))


def _restored(kind: Any, record: Any) -> Any:
    if record is None:
        return None
    if dataclasses.is_dataclass(kind):
        types = get_type_hints(kind)
        names = {field.name for field in dataclasses.fields(kind) if field.init and field.name in record}
        return kind(**{name: _restored(types[name], record[name]) for name in names})  # type: ignore[operator]  # a class
    if get_origin(kind) in (Union, UnionType):
        return _restored(next(each for each in get_args(kind) if each is not type(None)), record)
    if get_origin(kind) is tuple:
        first, *others = get_args(kind)
        if others == [...]:
            return tuple(_restored(first, item) for item in record)
        return tuple(_restored(each, item) for each, item in zip([first, *others], record, strict=True))
    return record


def _checked(module: ModuleType, name: str, contract: type, fields: type = TrainingConfig) -> ModuleType:
    """The recipe ``name`` if it defines what the Protocol ``contract`` has, and the ``fields`` of that Protocol."""
    advice = f"{contract.__name__} in dlrm_torchrec/recipe.py says what it is for; copy it from train_dlrm"
    defined = vars(module)
    functions = {each: call for each, call in inspect.getmembers(contract, inspect.isfunction) if each[0] != "_"}
    for each in ("Config", "PRESETS", *functions):
        if each not in defined:
            raise ValueError(f"recipe must define {each}: got {name!r}, which does not; {advice}")
    for each, wanted in functions.items():
        if not _takes(defined[each], wanted):
            raise ValueError(
                f"{each} of recipe {name!r} must take {_parameters(wanted)}: got {inspect.signature(defined[each])}; "
                f"{advice}"
            )
    config, presets = defined["Config"], defined["PRESETS"]
    types = get_type_hints(config) if dataclasses.is_dataclass(config) else {}
    for field, wanted in get_type_hints(fields).items():
        if field[0] != "_" and types.get(field) != wanted:
            shown = inspect.formatannotation(types[field]) if field in types else "none"
            raise ValueError(
                f"Config of recipe {name!r} must have a field {field} of type {inspect.formatannotation(wanted)}: got "
                f"{shown}; {advice}"
            )
    if not presets or not all(isinstance(preset, config) for preset in presets.values()):
        raise ValueError(f"PRESETS of recipe {name!r} must map names to Config: got {presets!r}; {advice}")
    return module


def _takes(function: Any, wanted: Any) -> bool:
    """Whether ``function`` can be called as the method ``wanted`` of a Protocol."""
    parameters = list(inspect.signature(wanted).parameters.values())[1:]
    positional = [each for each in parameters if each.kind is not each.KEYWORD_ONLY]
    keywords = {each.name: None for each in parameters if each.kind is each.KEYWORD_ONLY}
    try:
        inspect.signature(function).bind(*positional, **keywords)
    except TypeError:
        return False
    return True


def _parameters(method: Any) -> str:
    return f"({', '.join(list(inspect.signature(method).parameters)[1:])})"
