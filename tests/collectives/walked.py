"""Recipes run by ranks that are threads, from start to end, and the collectives that they issued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets import open as data
from dlrm_torchrec.train.world import World
from tests.collectives.meeting import Issued, Meetings
from tests.collectives.ranks import joined, walk
from tests.recipe import load_recipe

RANKS, PER_HOST = 16, 8
GPU = torch.device("cuda")
# Three full steps, and one whose 5 rows leave most ranks without any; so does the last batch of an evaluation.
SHORT = ["--rows", "197", "--batch-size", "64", "--checkpoint.every", "2", "--log.every", "2"]
BY_STEPS, BY_WINDOWS = ["--eval-every", "2"], ["--windows.days", "2"]
HELD_OUT_ROWS, HELD_OUT_BATCH = 133, 64
INTERACTIONS_BATCH = 4096  # each held-out event of a user has 99 others beside it


def walk_recipe(
    name: str,
    run_dir: Path,
    *arguments: str,
    size: int = RANKS,
    device: torch.device = GPU,
    before: Callable[[ModuleType], None] = lambda _: None,
) -> tuple[list[dict[str, float]], Meetings]:
    """What the recipe's main returned on each rank, and the collectives, of a short run of the demo at speed exact.

    ``before`` gets the recipe, to change it.
    """
    recipe = load_recipe(name)
    before(recipe)

    short = [*SHORT, *(BY_STEPS if hasattr(recipe.Config, "eval_every") else BY_WINDOWS)]
    held_out = INTERACTIONS_BATCH if hasattr(recipe, "open_interactions") else HELD_OUT_BATCH
    options = ["demo", *short, "--speed", "exact", "--run-dir", str(run_dir), *arguments]
    preset, config = parse(recipe.PRESETS, options)

    def main(_: World) -> dict[str, float]:
        metrics: dict[str, float] = recipe.main(preset, config)
        return metrics

    with (
        patch.object(data, "_HELD_OUT_ROWS", HELD_OUT_ROWS),
        patch.object(data, "held_out_batch", lambda _: held_out),
        patch.object(recipe, "join_world", joined),
    ):
        return walk(size, main, local_size=PER_HOST, device=device)


def issued(meetings: Meetings, caller: str) -> list[Issued]:
    """The collectives that were asked for where ``caller``, a file or one of its lines, says."""
    return [each for rank in meetings.record for each in rank if f"{caller}:" in f"{each.caller}:"]
