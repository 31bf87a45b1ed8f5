"""Durations as people read them."""

from __future__ import annotations

import math


def duration(seconds: float) -> str:
    """A measured time in plain words, with two units at most.

    >>> [duration(s) for s in (0.42, 9.96, 72, 3600, 5400, 200_000)]
    ['0.4 s', '10 s', '1 min 12 s', '1 h', '1 h 30 min', '2 d 7 h']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return _units(round(seconds))


def about(seconds: float) -> str:
    """An estimated time, in one unit, or two where one would be coarse.

    >>> [about(s) for s in (0.2, 47, 100, 1000, 5000, 100_000)]
    ['about 1 s', 'about 50 s', 'about 2 min', 'about 17 min', 'about 1 h 20 min', 'about 1 d 4 h']
    """
    if seconds < 10:
        return f"about {max(1, math.ceil(seconds))} s"
    step = next(step for least, step in ((86_100, 3600), (3570, 600), (55, 60), (0, 10)) if seconds >= least)
    return f"about {_units(round(seconds / step) * step)}"


def _units(seconds: int) -> str:
    parts = []
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        parts.append((count, name))
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = [f"{count} {name}" for count, name in parts[first : first + 2] if count]
    return " ".join(shown) or "0 s"
