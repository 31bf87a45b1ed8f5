"""Merges the changes of a copied recipe with another version of the recipe."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from dlrm_torchrec import __version__
from dlrm_torchrec.cli.origin import Copy, keep, write_copy
from dlrm_torchrec.cli.shipped import find


def merge(yours: str, original: str, new: str, labels: tuple[str, str, str]) -> tuple[str, int]:
    """The new text with your changes of the original, and the number of conflicts, which git's marks show in the text.

    ``labels`` name the three texts in the marks. Raises ValueError when git is missing.
    """
    if shutil.which("git") is None:
        raise ValueError("git must be on PATH, because it does the merge: got none; install git")
    with tempfile.TemporaryDirectory() as folder:
        texts = dict(zip(("yours", "original", "new"), (yours, original, new), strict=True))
        for name, text in texts.items():
            Path(folder, name).write_bytes(text.encode())
        options = [option for label in labels for option in ("-L", label)]
        command = ["git", "merge-file", "--stdout", *options, *texts]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if not 0 <= done.returncode <= 127:  # any other code is the number of conflicts
        raise ValueError(f"git must be able to merge the texts: got {done.stderr.decode().strip()}; merge them by hand")
    return done.stdout.decode(), done.returncode


def upgrade(copy: Copy) -> tuple[int, Path]:
    """The number of conflicts in the copy after the merge with the installed recipe, and the file with its old text.

    Raises ValueError and does not change the copy when the installed recipe, the original or git is missing.
    """
    recipe = find(copy.name)
    labels = ("yours", f"{copy.name} {copy.version}", f"{copy.name} {__version__}")
    merged, conflicts = merge(copy.text, copy.original(), recipe.text, labels)
    backup = keep(copy.path, f"{copy.path.stem}.before", copy.text)
    write_copy(copy.path, recipe, merged)
    return conflicts, backup
