"""A row in 8 bits: integers, and the scale and offset that give the numbers back."""

from __future__ import annotations

from drawings.kit import Drawing

ROW = (0.12, -0.31, 0.05, 0.20)


def draw() -> Drawing:
    low, scale = min(ROW), (max(ROW) - min(ROW)) / 255
    levels = [round((value - low) / scale) for value in ROW]
    picture = Drawing(280, "A row of four floats, stored as four bytes with a scale and an offset, and read back")
    picture.text((14, 22), "trained: 4 bytes a number", look="strong")
    picture.cells((14, 32), [f"{value:.2f}" for value in ROW], width=52, height=26, kind="table")
    picture.text((236, 50), "16 bytes", look="soft")
    picture.arrow((118, 58), (118, 84))
    picture.text((14, 104), "stored: 1 byte a number, and 4 for the row", look="strong", size=12)
    picture.cells((14, 114), [f"{level}" for level in levels], width=34, height=26, kind="ids")
    picture.cells(
        (150, 114), [f"x {scale:.4f}", f"+ {low:.2f}".replace("+ -", "- ")], width=70, height=26, kind="plain"
    )
    picture.text((300, 132), "8 bytes", look="soft")
    picture.text((14, 160), "of dim 64: 68 bytes in place of 256", look="soft")
    picture.arrow((118, 170), (118, 194))
    picture.text((14, 214), "looked up: level x scale + offset", look="strong")
    back = [level * scale + low for level in levels]
    picture.cells((14, 224), [f"{value:.3f}" for value in back], width=52, height=26, kind="result")
    picture.text((236, 242), "summed as floats", look="soft")
    picture.text((14, 270), f"off by at most half a scale, {scale / 2:.4f}", look="soft")
    return picture
