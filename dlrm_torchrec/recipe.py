"""A recipe from the outside: its file, its command line, and the config of a run that it made."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

Config = TypeVar("Config")


def parse(presets: Mapping[str, Config], argv: Sequence[str] | None = None) -> tuple[str, Config]:
    """The chosen preset's name and its config with the options of ``argv`` applied; the first preset by default.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Config:
    ...     lr: float
    >>> parse({"demo": Config(lr=0.1), "big": Config(lr=1.0)}, ["big", "--lr", "2"])
    ('big', Config(lr=2.0))
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next(iter(presets))
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
    if name not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}: got {name!r}; name one of them, or none")
    default = presets[name]
    text = f"{sys.modules[type(default).__module__].__doc__}\nPresets: {', '.join(presets)}; shown: {name}."
    parsed = tyro.cli(type(default), default=default, args=arguments, prog=f"{sys.argv[0]} [PRESET]", description=text)
    return name, parsed


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


def restore(kind: Any, record: Any) -> Any:
    """A value of type ``kind``, a dataclass mostly, from the JSON of its ``asdict``; what is not in it is the default.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Config:
    ...     widths: tuple[int, ...]
    ...     window: tuple[int, int] | None = None
    >>> restore(Config, {"widths": [64, 16]})
    Config(widths=(64, 16), window=None)
    """
    if record is None:
        return None
    if dataclasses.is_dataclass(kind):
        types = get_type_hints(kind)
        names = {field.name for field in dataclasses.fields(kind) if field.init and field.name in record}
        return kind(**{name: restore(types[name], record[name]) for name in names})  # type: ignore[operator]  # a class
    if get_origin(kind) in (Union, UnionType):
        return restore(next(each for each in get_args(kind) if each is not type(None)), record)
    if get_origin(kind) is tuple:
        first, *others = get_args(kind)
        return (
            tuple(restore(each, item) for each, item in zip([first, *others], record, strict=True))
            if (others != [...])
            else tuple(restore(first, item) for item in record)
        )
    return record
