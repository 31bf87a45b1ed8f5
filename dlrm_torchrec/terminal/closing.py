"""The last words of a command: what it reached, what it wrote, how long it took, and what to do next."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence

from dlrm_torchrec.terminal.failure import STARTED
from dlrm_torchrec.terminal.words import duration


def say_closing(*, reached: str = "", wrote: Sequence[str] = (), next: Sequence[str] = ()) -> None:
    """Print the closing block on standard error; ``next`` are commands, or a sentence."""
    took = duration(time.monotonic() - STARTED)
    rows = [("reached", [reached]), ("wrote", [", ".join(wrote)]), ("took", [took]), ("next", next)]
    print(block(rows), file=sys.stderr, flush=True)


def block(rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Lines with a heading in front of each group; empty lines, and groups without others, are left out.

    >>> print(block([("reached", ["AUC 0.8"]), ("saved", [""]), ("next", ["one", "two"])]))
    reached  AUC 0.8
    next     one
             two
    """
    groups = [(name, [line for line in lines if line]) for name, lines in rows]
    width = max((len(name) for name, lines in groups if lines), default=0)
    return "\n".join(f"{'' if i else name:{width}}  {line}" for name, lines in groups for i, line in enumerate(lines))
