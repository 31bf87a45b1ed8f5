"""Draw the pictures of the deep dive again, all of them in a second.

    python docs/draw.py

Each module of docs/drawings draws the SVG file of its name. The file carries the hash of the code that drew it, and a
test finds files that other code has drawn.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

FOLDER = Path(__file__).parent / "drawings"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "kit"))
MODULES = {name: importlib.import_module(f"drawings.{name}") for name in NAMES}


def drawn(name: str) -> str:
    """The SVG file of a module of docs/drawings."""
    code = (FOLDER / "kit.py").read_bytes() + (FOLDER / f"{name}.py").read_bytes()
    svg: str = MODULES[name].draw().svg(f"docs/drawings/{name}.py, {hashlib.sha256(code).hexdigest()[:16]}")
    return svg


if __name__ == "__main__":
    for each in NAMES:
        (FOLDER / f"{each}.svg").write_text(drawn(each))
