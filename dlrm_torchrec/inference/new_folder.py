"""A folder that appears whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which becomes ``path`` after the block; what lies at ``path`` stays until then."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{secrets.token_hex(4)}.{what}") for what in ("new", "old"))
    try:
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for rest in (new, old):
            shutil.rmtree(rest, ignore_errors=True)
