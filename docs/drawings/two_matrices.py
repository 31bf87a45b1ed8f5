"""Matrix factorisation: the matrix of ratings as a product of two narrow ones."""

from __future__ import annotations

from drawings.kit import Drawing

USERS, ITEMS, FACTORS = 5, 7, 2


def draw() -> Drawing:
    picture = Drawing(226, "A rating of user 2 and item 4 is the product of a row of P and a column of Q")
    side, user, item = 21, 2, 4
    ratings = {(0, 1): "5", (0, 5): "1", (1, 0): "4", (1, 3): "2", (2, 1): "4", (3, 6): "5", (4, 2): "3", (4, 4): "1"}
    for row in range(USERS):
        for column in range(ITEMS):
            wanted = (row, column) == (user, item)
            text = "?" if wanted else ratings.get((row, column), "")
            at = (8 + side * column, 66 + side * row)
            picture.box(at, (side, side), text, kind="result" if wanted else "ids" if text else "quiet")
    picture.text((81, 30), "ratings R", anchor="middle", look="strong")
    picture.text((81, 48), "users x items", anchor="middle", look="soft")
    picture.text((172, 123), "≈", anchor="middle", size=18)
    for row in range(USERS):
        picture.cells(
            (186, 66 + side * row), [""] * FACTORS, width=12, height=side, kind="table" if row == user else "plain"
        )
    picture.text((198, 30), "P", anchor="middle", look="strong")
    picture.text((198, 48), "users", anchor="middle", look="soft")
    for row in range(FACTORS):
        for column in range(ITEMS):
            kind = "table" if column == item else "plain"
            picture.box((222 + 18 * column, 66 + side * row), (18, side), kind=kind)
    picture.text((285, 30), "Q", anchor="middle", look="strong")
    picture.text((285, 48), "items", anchor="middle", look="soft")
    picture.text((222, 130), "2 factors each", look="soft")
    picture.text((180, 200), "? = row of P times column of Q, plus biases", anchor="middle", look="strong")
    return picture
