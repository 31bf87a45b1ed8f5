"""The pairs of a factorisation machine, and the square that has them all."""

from __future__ import annotations

from drawings.kit import Drawing

FEATURES = ("user", "item", "city", "hour", "age")


def draw() -> Drawing:
    picture = Drawing(262, "All products of two of five vectors: a square; its lower half holds each pair once")
    side, left, top = 40, 64, 50
    picture.text((left + 100, 20), "products of vectors", anchor="middle", look="strong")
    for number, name in enumerate(FEATURES):
        picture.text((left + side * (number + 0.5), 42), name, anchor="middle", look="soft")
        picture.text((left - 8, top + side * (number + 0.5) + 4), name, anchor="end", look="soft")
    for row in range(5):
        for column in range(5):
            kind = "result" if row > column else "plain" if row == column else "quiet"
            picture.box((left + side * column, top + side * row), (side, side), kind=kind)
    picture.text((276, 72), "the square", look="strong", size=11)
    picture.text((276, 88), "is |Σ v|²", size=11)
    picture.text((276, 120), "less its", look="strong", size=11)
    picture.text((276, 136), "diagonal", look="strong", size=11)
    picture.text((276, 152), "Σ |v|²,", size=11)
    picture.text((276, 184), "and half", look="strong", size=11)
    picture.text((276, 200), "of that", look="strong", size=11)
    return picture
