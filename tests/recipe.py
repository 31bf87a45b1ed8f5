"""Recipes run by path, as a person runs them: in this process's ranks, or as a command."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from dlrm_torchrec.command_line import parse
from tests.distributed import run_ranks

ROOT = Path(__file__).parent.parent


def load_recipe(name: str) -> ModuleType:
    """The recipe's file as a module (recipes are not a package)."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and tyro look their module up
    spec.loader.exec_module(module)
    return module


def run_recipe(name: str, arguments: list[str], world_size: int, timeout_s: float = 240) -> dict[str, float]:
    """What the recipe's main returned on rank 0, run by ``world_size`` gloo processes."""
    return run_ranks(world_size, _run, name, arguments, timeout_s=timeout_s, join=False)[0]


def _run(name: str, arguments: list[str]) -> dict[str, float]:
    """The recipe's main, at the speed that computes alike on every machine unless ``arguments`` name another."""
    recipe = load_recipe(name)
    if name.startswith("train_") and not any(argument.startswith("--speed") for argument in arguments):
        arguments = [*arguments, "--speed", "exact"]
    return recipe.main(*parse(recipe.PRESETS, arguments))


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
