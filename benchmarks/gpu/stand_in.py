"""Recipes mark options for their command line with names of tyro; a proof reads no command line."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class Marker:
    """Any name of tyro: ``Marker[X]`` is X, and a call gives nothing."""

    def __class_getitem__(cls, kind: Any) -> Any:
        return kind

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return None


def without_tyro() -> None:
    """Let recipes be imported where tyro is not installed."""
    if find_spec("tyro") is None:
        for name in ("tyro", "tyro.conf"):
            module = ModuleType(name)
            module.__dict__["__getattr__"] = lambda _: Marker
            sys.modules[name] = module
