"""Runs a script as its command line does, in a Python that cannot import torch: without_torch.py SCRIPT ARGUMENTS."""

from __future__ import annotations

import runpy
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec


class NoTorch(MetaPathFinder):
    """Finds torch first, and refuses it."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name == "torch":
            raise ImportError("no torch here")
        return None


if __name__ == "__main__":
    sys.meta_path.insert(0, NoTorch())
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
