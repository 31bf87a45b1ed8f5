"""A quotient-remainder table at work on ten ids."""

from __future__ import annotations

from drawings.kit import Drawing

IDS, COLLISIONS, SHOWN = 10, 4, 6


def draw() -> Drawing:
    quotients = -(-IDS // COLLISIONS)
    picture = Drawing(304, f"Ten ids in a table of {quotients} quotients and one of {COLLISIONS} remainders")
    picture.text((14, 20), "ten ids: their quotient, remainder by 4", look="strong")
    for number in range(IDS):
        picture.box((14 + 33 * number, 32), (33, 22), f"{number}", kind="ids" if number == SHOWN else "quiet")
        classes = f"{number // COLLISIONS},{number % COLLISIONS}"
        picture.text((30.5 + 33 * number, 70), classes, anchor="middle", size=11, look="soft")
    x = 30.5 + 33 * SHOWN
    picture.text((66, 122), "quotients", anchor="middle", look="strong")
    picture.text((290, 122), "remainders", anchor="middle", look="strong")
    for left, count, picked in ((14, quotients, SHOWN // COLLISIONS), (238, COLLISIONS, SHOWN % COLLISIONS)):
        for row in range(count):
            y = 130 + 22 * row
            picture.text((left + 10, y + 15), f"{row}", anchor="end", look="soft", size=11)
            picture.cells((left + 16, y), [""] * 4, width=22, height=22, kind="table" if row == picked else "plain")
    picture.line((x, 76), (x, 92), (180, 92), (180, 163))
    picture.arrow((180, 163), (120, 163))
    picture.arrow((180, 163), (180, 185), (226, 185))
    picture.text((172, 156), f"{SHOWN // COLLISIONS}", anchor="end", look="strong")
    picture.text((190, 180), f"{SHOWN % COLLISIONS}", look="strong")
    picture.text((180, 242), "⊙", anchor="middle", size=18)
    picture.arrow((74, 200), (74, 236), (168, 236))
    picture.arrow((290, 222), (290, 236), (192, 236))
    picture.arrow((180, 248), (180, 267))
    picture.cells((136, 268), [""] * 4, width=22, height=22, kind="result")
    picture.text((234, 284), f"the vector of id {SHOWN}", look="strong")
    return picture
