"""The way of a batch over two ranks, forward."""

from __future__ import annotations

from drawings.kit import Drawing

STEPS = (
    ("reads", "rows 0 .. B/2", "rows B/2 .. B", "plain"),
    ("1. ids", "gets ids of a, b", "gets ids of c, d", "ids"),
    ("2. lookup", "a, b of B rows", "c, d of B rows", "table"),
    ("3. vectors", "gets c, d of its rows", "gets a, b of its rows", "result"),
    ("4. MLPs", "a, b, c, d of B/2 rows", "a, b, c, d of B/2 rows", "dense"),
)


def draw() -> Drawing:
    picture = Drawing(330, "Two ranks read half of a batch each, swap ids, look up whole tables, and swap vectors")
    for left, name in ((72, "rank 0: tables a, b"), (220, "rank 1: tables c, d")):
        picture.text((left + 69, 22), name, anchor="middle", look="strong")
    for number, (name, first, second, kind) in enumerate(STEPS):
        y = 34 + 60 * number
        picture.text((2, y + 20), name, size=11, look="strong")
        for left, told in ((72, first), (220, second)):
            picture.box((left, y), (138, 32), kind=kind)
            picture.text((left + 69, y + 20), told, anchor="middle", size=11)
            if number:
                picture.arrow((left + 69, y - 28), (left + 69, y - 1))
        if kind in ("ids", "result"):
            picture.arrow((152, y - 28), (276, y - 1))
            picture.arrow((276, y - 28), (152, y - 1))
    return picture
