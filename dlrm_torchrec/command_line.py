"""The command line of a recipe: a preset, and options that change it. No torch, so that ``--help`` is quick."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TypeVar

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
