"""Days in order, killed with SIGKILL at random moments: same metrics, and the same packages byte for byte.

Half of the kills come at a time that is uniform over the seconds of an undisturbed run, the others inside a write of a
checkpoint or of a published folder. A run that ends before its kill is compared, and another one begins. Each kill
prints what it met, with the seed; ``-rP`` shows it. ``DAILY_KILL_SEED`` draws the same kills again.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dlrm_torchrec.train.checkpoints.folder import complete_steps
from tests.launched import Trap, launched
from tests.recipe import ROOT
from tests.recipes.kills import KILLED, TARGETS, Kill
from tests.recipes.test_kill_campaign import LIMIT_S, final, told

KILLS = 20
DAYS, ROWS, BATCH = 4, 4_000, 256
# Calls that write, and how many of them at most a life may pass before the one where it is killed.
WRITES = {
    "dlrm_torchrec.train.checkpoints.checksums:SummedStream.sync": 24,
    "dlrm_torchrec.train.checkpoints.checkpoint:Checkpoints._commit": 12,
    "dlrm_torchrec.inference.publishing:write_package": 4,
    "dlrm_torchrec.inference.publishing:write_delta": 3,
    "pathlib:Path.rename": 4,  # a package or a delta gets its name
    "pathlib:Path.write_text": 8,
    "shutil:copyfile": 8,
    "shutil:rmtree": 12,
    "numpy:save": 24,
}


def command(preset: str, folder: Path) -> list[str]:
    return [
        str(ROOT / "recipes/train_dlrm_daily.py"), preset, f"--rows={ROWS}", f"--batch-size={BATCH}",
        f"--windows.days={DAYS}", f"--run-dir={folder}", "--bottom", "16", "8", "--top", "16", "1", "--log.every=1",
        "--checkpoint.every=5", "--speed=exact", f"--publish.folder={folder}/published",
        "--publish.quantization.max-auc-loss=1", "--publish.full-every=3",
    ]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """What a run left when it had ended."""

    metrics: dict[str, float]
    records: list[dict[str, object]]
    packages: dict[str, bytes]


def ended(preset: str, num_ranks: int, folder: Path) -> tuple[Ended, float]:
    """What a run leaves that is started once more and not disturbed, and its seconds."""
    with launched(command(preset, folder), num_ranks, folder / "last") as life:
        life.wait_for_start(LIMIT_S)
        start = time.monotonic()
        code, seconds = life.wait(LIMIT_S), time.monotonic() - start
    assert code == 0, life.err()
    return Ended(final(life), told(folder / preset), contents(folder / "published")), seconds


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw_kill(draw: random.Random, num_ranks: int, whole_s: float) -> Kill:
    """The next kill: at any time of a run that takes ``whole_s`` seconds, or inside a write."""
    target = draw.choice(TARGETS) if num_ranks > 1 else "the launcher"
    if draw.random() < 0.5:
        return Kill(KILLED, target, "any time", None, after_s=draw.uniform(0, whole_s))
    function = draw.choice(list(WRITES))
    return Kill(KILLED, target, "write", Trap(function, draw.randint(1, WRITES[function])), after_s=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("preset", "num_ranks"), [("demo", 1), ("managed", 1), ("managed", 2)])
def test_twenty_kills_change_no_number_and_no_package(preset: str, num_ranks: int, tmp_path: Path) -> None:
    seed = int(os.environ.get("DAILY_KILL_SEED") or random.randrange(2**32))
    print(f"SEED {seed}")
    draw = random.Random(seed)
    expected, whole_s = ended(preset, num_ranks, tmp_path / "whole")
    assert {path.partition("/")[0] for path in expected.packages} == {
        *("base-0000", "delta-0001", "delta-0002", "base-0003", "delta-0003")
    }

    met, lives, compared, folder = 0, 0, 0, tmp_path / "run-0"
    while met < KILLS:
        kill = draw_kill(draw, num_ranks, whole_s)
        with launched(command(preset, folder), num_ranks, folder / f"life{lives}", kill.trap) as life:
            was_met = kill.strike(life, draw)
            life.wait(LIMIT_S)
            life.wait_for_ranks(LIMIT_S)
        assert "This is a bug" not in life.err(), life.err()
        met, lives = met + was_met, lives + 1
        print(
            f"KILL {met} {preset}, {num_ranks} ranks, to {kill.target}, "
            f"{kill.trap or f'after {kill.after_s:.1f} of {whole_s:.1f} s'}: {'met' if was_met else 'missed'}, "
            f"saved {complete_steps(f'{folder}/{preset}/checkpoints')}, published {published(folder / 'published')}"
        )
        if not was_met or met == KILLS:
            assert ended(preset, num_ranks, folder)[0] == expected
            compared, folder = compared + 1, tmp_path / f"run-{compared + 1}"
    print(f"{met} kills in {lives} lives of {compared} runs, each like the one that nothing disturbed")


def published(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
