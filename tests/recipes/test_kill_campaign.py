"""Every training recipe, killed at random moments: it ends as if nothing had happened, bit for bit.

The slow campaign has three kills for each recipe on one rank and on two, and for other ways to save and to compute: 76
of 78 met a run that had not ended. Each prints what it met; ``-rP`` shows it.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dlrm_torchrec.train.checkpoints.folder import complete_steps
from tests.launched import Launched, is_running, launched
from tests.recipe import ROOT, records
from tests.recipes.kills import KILLED, kills, tear

STEPS, BATCH = 200, 64
KILLS = 3  # of a run
LIMIT_S = 200.0
# The days of train_dlrm_daily have a campaign of their own, and those of train_hstu_daily a few kills in its test.
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("train_*.py") if not path.stem.endswith("_daily"))
OPTIONS = {  # at which a recipe does what it alone does
    "train_dlrm_local_embeddings": ["--average-every=7"],
    "train_hstu": ["--rows=2200"],  # users, who have some ten samples each
    "train_hstu_next_item": ["--rows=1000"],
}


def command(recipe: str, run_dir: Path, *options: str) -> list[str]:
    return [
        str(ROOT / "recipes" / f"{recipe}.py"), "demo", f"--rows={STEPS * BATCH}", f"--batch-size={BATCH}",
        f"--run-dir={run_dir}", "--log.every=1", "--eval-every=80", "--checkpoint.every=10",
        *OPTIONS.get(recipe, []), *options,
    ]  # fmt: skip


def train(words: list[str], num_ranks: int, folder: Path) -> Launched:
    """A run that nothing interrupts."""
    with launched(words, num_ranks, folder) as done:
        code = done.wait(LIMIT_S)
        assert code == 0, done.err()
    return done


def final(done: Launched) -> dict[str, float]:
    """The last line of a run, without what was measured of its last process."""
    metrics = json.loads(done.out().splitlines()[-1])
    return {name: value for name, value in metrics.items() if name not in ("samples_per_s", "step_bytes")}


def told(run: Path) -> list[dict[str, Any]]:
    """The records of a run without those numbers that differ between two equal runs."""
    differing = ("samples_per_s", "bytes/fullest_rank", "bytes/emptiest_rank")
    return [{name: value for name, value in each.items() if name not in differing} for each in records(run)]


Whole = tuple[dict[str, float], list[dict[str, Any]]]  # final metrics, and records
Undisturbed = Callable[[str, int, tuple[str, ...]], Whole]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    @cache
    def run(recipe: str, num_ranks: int, speed: tuple[str, ...]) -> Whole:
        folder = tmp_path_factory.mktemp("whole")
        done = train([*command(recipe, folder), "--speed", *speed], num_ranks, folder / "life")
        return final(done), told(folder / "demo")

    return run


def campaign(recipe: str, num_ranks: int, folder: Path, options: list[str]) -> tuple[Launched, int]:
    """A run that is killed ``KILLS`` times, with torn writes in between, and then ends; and how many kills met it."""
    draw = random.Random(f"{recipe} {num_ranks} {options}")
    words, run = command(recipe, folder, *options), folder / "demo"
    met, lives = 0, list[Launched]()
    with ExitStack() as stack:
        for number, kill in enumerate(kills(draw, num_ranks, KILLS)):
            start = time.monotonic()
            life = stack.enter_context(launched(words, num_ranks, folder / f"life{number}", kill.trap))
            lives.append(life)
            was_met, torn = kill.strike(life, draw), ""
            code = life.wait(LIMIT_S)
            orphans = num_ranks > 1 and (kill.kind, kill.target) == (KILLED, "the launcher")
            if was_met and not orphans:  # which still save when the next command starts
                life.wait_for_ranks(LIMIT_S)
                torn = tear(run, draw)
            met += was_met
            print(
                f"KILL {recipe}, {num_ranks} ranks, {kill.kind.name} to {kill.target}, {kill.moment}, {kill.trap}: "
                f"{'met' if was_met else 'missed'}, code {code}, torn: {torn or 'nothing'}; "
                f"{time.monotonic() - start:.1f} s, saved {complete_steps(f'{run}/checkpoints')}"
            )
        last = train(words, num_ranks, folder / "last")
        for life in [*lives, last]:
            assert "This is a bug" not in life.err(), life.err()
            assert not re.search("must (have one run at a time|hold a whole)", life.err()), life.err()
            assert not any(map(is_running, life.ranks().values()))
    return last, met


def ends_alike(recipe: str, num_ranks: int, folder: Path, options: list[str], undisturbed: Undisturbed) -> int:
    """How many kills a run of several met, which then ended as the one that nothing interrupted."""
    last, met = campaign(recipe, num_ranks, folder, options)
    speed = json.loads((folder / "demo/config.json").read_text())["speed"]
    metrics, said = undisturbed(recipe, num_ranks, tuple(speed))
    assert final(last) == metrics
    assert told(folder / "demo") == said
    return met


@pytest.mark.parametrize(("recipe", "num_ranks"), [("train_mf", 1), ("train_deepfm", 2)])
def test_a_recipe_ends_as_if_nothing_had_happened(
    recipe: str, num_ranks: int, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    assert ends_alike(recipe, num_ranks, tmp_path, ["--speed", "exact"], undisturbed) >= 1


ALL = [(recipe, num_ranks, ["--speed", "exact"]) for recipe in RECIPES for num_ranks in (1, 2)]
MORE = [
    ("train_dlrm", 2, ["--checkpoint.asynchronous", "--checkpoint.keep=1", "--speed", "exact"]),
    ("train_mf", 1, ["--checkpoint.asynchronous", "--speed", "exact"]),
    ("train_fm", 2, ["--checkpoint.every=0", "--checkpoint.minutes=0.001", "--checkpoint.best", "--speed", "exact"]),
    ("train_neumf", 1, ["--checkpoint.every=0", "--checkpoint.minutes=0.001", "--speed", "exact"]),
    ("train_dcnv2", 2, ["--speed", "auto"]),
    ("train_logistic", 1, ["--speed", "auto"]),
]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("recipe", "num_ranks", "options"), [*ALL, *MORE])
def test_every_recipe_ends_as_if_nothing_had_happened(
    recipe: str, num_ranks: int, options: list[str], tmp_path: Path, undisturbed: Undisturbed
) -> None:
    assert ends_alike(recipe, num_ranks, tmp_path, options, undisturbed) >= 1
