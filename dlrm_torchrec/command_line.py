"""The command line of a recipe: a preset, and options that change it. No torch, so that ``--help`` is quick."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TypeVar

import tyro

from dlrm_torchrec.terminal.failure import one_voice

Config = TypeVar("Config")


def parse(presets: Mapping[str, Config], argv: Sequence[str] | None = None) -> tuple[str, Config]:
    """The chosen preset's name and its config with the options of ``argv`` applied; the first preset by default.

    Without ``argv``, it reads the command line of this process, and ends the process with a sentence if it is wrong.
    Raises ValueError for a preset of ``argv`` that there is not.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Config:
    ...     lr: float
    >>> parse({"demo": Config(lr=0.1), "big": Config(lr=1.0)}, ["big", "--lr", "2"])
    ('big', Config(lr=2.0))
    """
    if argv is not None:
        return _parsed(presets, list(argv))
    with one_voice():
        return _parsed(presets, sys.argv[1:])


def read_options(kind: type[Config], description: str | None) -> Config:
    """The config that the command line of this process sets; it ends the process with a sentence if it is wrong."""
    with one_voice():
        return tyro.cli(kind, description=description)


def _parsed(presets: Mapping[str, Config], arguments: list[str]) -> tuple[str, Config]:
    name = next(iter(presets))
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
    if name not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}: got {name!r}; name one of them, or none")
    default = presets[name]
    text = f"{sys.modules[type(default).__module__].__doc__}\nPresets: {', '.join(presets)}; shown: {name}."
    parsed = tyro.cli(type(default), default=default, args=arguments, prog=f"{sys.argv[0]} [PRESET]", description=text)
    return name, parsed
