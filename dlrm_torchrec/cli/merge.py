"""What a person changed in a copied recipe, carried over to the recipe of another version."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from dlrm_torchrec import __version__
from dlrm_torchrec.cli.origin import Copy, keep, write_copy
from dlrm_torchrec.cli.shipped import find


def merge(yours: str, original: str, new: str, labels: tuple[str, str, str]) -> tuple[str, int]:
    """The new text with your changes of the original, and the number of conflicts, marked in it as git marks them.

    ``labels`` name the three texts in the marks. Raises ValueError when there is no git.
    """
    if shutil.which("git") is None:
        raise ValueError("git must be on PATH, it does the merge: got none; install git")
    with tempfile.TemporaryDirectory() as folder:
        texts = dict(zip(("yours", "original", "new"), (yours, original, new), strict=True))
        for name, text in texts.items():
            Path(folder, name).write_bytes(text.encode())
        options = [option for label in labels for option in ("-L", label)]
        command = ["git", "merge-file", "--stdout", *options, *texts]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if not 0 <= done.returncode <= 127:  # else it is the number of conflicts
        raise ValueError(f"texts must be such as git can merge: {done.stderr.decode().strip()}; merge them by hand")
    return done.stdout.decode(), done.returncode


def upgrade(copy: Copy) -> tuple[int, Path]:
    """The number of conflicts now marked in the copy, merged with the installed recipe, and where its old text is kept.

    Raises ValueError, and leaves the copy as it was, when the recipe is gone, its original is lost, or git is missing.
    """
    recipe = find(copy.name)
    labels = ("yours", f"{copy.name} {copy.version}", f"{copy.name} {__version__}")
    merged, conflicts = merge(copy.text, copy.original(), recipe.text, labels)
    backup = keep(copy.path, f"{copy.path.stem}.before", copy.text)
    write_copy(copy.path, recipe, merged)
    return conflicts, backup
