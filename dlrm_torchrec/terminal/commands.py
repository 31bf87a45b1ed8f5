"""Commands to type next, written as the recipe that prints them was started."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"


def this_recipe() -> str:
    """The recipe that runs in this process, as ``evaluate`` takes it: its name here, or the path of a copy."""
    script = Path(sys.argv[0])
    ours = RECIPES / f"{script.stem}.py"
    return script.stem if ours.exists() and script.exists() and ours.samefile(script) else str(script)


def start(recipe: str, *words: str) -> str:
    """The command that starts ``recipe`` with these arguments: by its path if it is beside this script, as typed.

    >>> start("evaluate", "train_dlrm", "my runs/demo")
    "dlrm-recipes run evaluate -- train_dlrm 'my runs/demo'"
    """
    beside = Path(sys.argv[0]).with_name(f"{recipe}.py")
    by_path = not beside.is_absolute() and beside.exists()
    program = ["python", str(beside)] if by_path else ["dlrm-recipes", "run", recipe, "--"]
    return shlex.join([*program, *words])


def show(run: str) -> str:
    """The command that draws the curves of a run."""
    return shlex.join(["dlrm-recipes", "show", run])
