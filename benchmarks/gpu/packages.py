"""Which packages the proof looks for, and how it does without tyro.

Recipes mark options for their command line with names of tyro, and a proof reads no command line.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

NEEDED = ("torch", "torchrec", "fbgemm_gpu")
# Those that torchrec asks for, then those of this project.
OTHERS = ("torchmetrics", "tensordict", "pyre_extensions", "iopath", "tqdm", "numpy", "numba", "pyarrow", "tyro")


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
