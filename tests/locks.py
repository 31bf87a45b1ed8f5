"""What a lock in requirements/ pins, and the stacks and Pythons that there are."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parents[1] / "requirements"


def lock(name: str) -> dict[str, str]:
    """Package name -> version of a lock and of those that it takes in, which hold nothing but pins with hashes."""
    pins: dict[str, str] = {}
    text = (FOLDER / name).read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("-r "):
            taken = lock(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            found = re.fullmatch(r"(\S+)==(\S+)((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
            assert found, f"requirements/{name} must pin exact versions with hashes: got {line!r}; run make lock"
            assert found[1] == canonicalize_name(found[1])
            taken = {found[1]: found[2]}
        else:
            continue
        assert not taken.keys() & pins, f"requirements/{name} pins {taken.keys() & pins} twice"
        pins |= taken
    return pins


def stacks() -> list[str]:
    """What ``make test-stack STACK=`` takes beside ``lock``, oldest first."""
    names = (path.name for path in FOLDER.glob("stack-*-libraries.txt"))
    return sorted((name.split("-")[1] for name in names), key=lambda stack: [*map(int, stack.split("."))])


def supported_pythons() -> tuple[int, ...]:
    """The minor versions of Python 3 that the locks have wheels for, oldest first."""
    pythons: tuple[int, ...] = runpy.run_path(str(FOLDER / "lock.py"))["PYTHONS"]
    return pythons
