"""An MLP: each layer multiplies by a matrix and sets negative numbers to 0."""

from __future__ import annotations

from itertools import pairwise

from drawings.kit import Drawing

WIDTHS = (13, 512, 256, 64, 16)


def draw() -> Drawing:
    picture = Drawing(246, "The bottom MLP of DLRM on Criteo Kaggle: 13 columns, layers of 512, 256, 64 and 16 numbers")
    picture.text((180, 20), "bottom MLP of Criteo Kaggle", anchor="middle", look="strong")
    for number, width in enumerate(WIDTHS):
        x, height = 14 + 76 * number, 16 + 6 * width**0.5
        kind = "plain" if number == 0 else "result" if number == 4 else "dense"
        picture.box((x, 112 - height / 2), (26, height), kind=kind)
        picture.text((x + 13, 206), f"{width}", anchor="middle", look="strong")
        if number:
            parameters = (WIDTHS[number - 1] + 1) * width
            picture.arrow((x - 50, 112), (x - 1, 112))
            picture.text((x - 25, 104), f"{parameters / 1000:.0f} k", anchor="middle", size=11)
    total = sum((a + 1) * b for a, b in pairwise(WIDTHS))
    picture.text((180, 234), f"{total:,} weights; one row of a table: 16", anchor="middle", look="soft")
    return picture
