"""The butterfly shuffle: from all rows of some features to some rows of all features."""

from __future__ import annotations

from drawings.kit import Drawing

RANKS = 3
COLOURS = ("ids", "table", "dense")


def draw() -> Drawing:
    picture = Drawing(318, "Three ranks: each sends the vectors of a third of the rows to each other rank")
    picture.text((180, 20), "before: all rows of its features", anchor="middle", look="strong")
    picture.text((180, 308), "after: all features of its rows", anchor="middle", look="strong")
    for rank in range(RANKS):
        left = 14 + 116 * rank
        picture.text((left + 50, 44), f"rank {rank}: table {'abc'[rank]}", anchor="middle", look="soft")
        picture.text((left + 50, 286), f"rank {rank}: rows {rank}", anchor="middle", look="soft")
        for piece in range(RANKS):
            name = f"{'abc'[rank]}{piece}"
            picture.box((left, 52 + 24 * piece), (100, 24), name, kind=COLOURS[rank])
            arrived = f"{'abc'[piece]}{rank}"
            picture.box((left + 34 * piece, 240), (33, 30), arrived, kind=COLOURS[piece])
            start = (left + 50, 124)
            picture.arrow(start, (14 + 116 * piece + 34 * rank + 16, 239))
    return picture
