"""A bag of ids picks rows of a table, and their sum is the vector of the feature."""

from __future__ import annotations

from drawings.kit import Drawing

ROWS = ((".1", "-.4", ".9"), (".7", ".2", "-.3"), (".0", ".5", ".1"), ("-.6", ".3", ".8"), (".4", "-.1", ".2"))
BAG = (1, 3)


def draw() -> Drawing:
    picture = Drawing(
        232, "Ids 1 and 3 of a bag pick two rows of a table; the sum of both rows is the feature's vector"
    )
    picture.text((40, 20), "the bag", anchor="middle", look="strong")
    picture.text((188, 20), "the table", anchor="middle", look="strong")
    picture.text((188, 176), "one row per id, dim 3", anchor="middle", look="soft")
    for number, row in enumerate(ROWS):
        y = 32 + 26 * number
        picked = number in BAG
        picture.text((116, y + 17), f"{number}", anchor="end", look="soft")
        picture.cells((126, y), row, width=42, height=26, kind="table" if picked else "quiet")
    for place, number in enumerate(BAG):
        y = 60 + 40 * place
        picture.box((20, y), (40, 24), f"{number}", kind="ids")
        picture.arrow((60, y + 12), (104, 32 + 26 * number + 13))
        picture.line((252, 32 + 26 * number + 13), (290, 32 + 26 * number + 13), (290, 136))
    picture.text((290, 152), "sum", anchor="middle", look="strong")
    picture.arrow((290, 158), (290, 193))
    sums = [sum(float(ROWS[number][column]) for number in BAG) for column in range(3)]
    picture.cells((226, 194), [f"{value:.1f}".replace("0.", ".") for value in sums], width=42, height=26, kind="result")
    picture.text((214, 211), "the vector of the feature", anchor="end", look="strong")
    return picture
