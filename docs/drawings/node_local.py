"""Node-local tables: every node has tables of its own, and only MLPs are averaged in every step."""

from __future__ import annotations

from drawings.kit import Drawing


def draw() -> Drawing:
    picture = Drawing(262, "Two nodes: MLPs are averaged in every step, tables only now and then, or never")
    for number, left in enumerate((10, 210)):
        picture.box((left, 30), (140, 218), kind="plain")
        picture.text((left + 70, 20), f"node {number}", anchor="middle", look="strong")
        picture.box((left + 12, 42), (116, 44), "MLPs", kind="dense", bold=True)
        picture.box((left + 12, 120), (116, 56), "all tables,\nlearned here", kind="table")
        picture.box((left + 12, 204), (116, 32), "half of the rows", kind="ids")
        picture.arrow((left + 70, 204), (left + 70, 177))
        picture.arrow((left + 70, 120), (left + 70, 87))
    for y, first, second in ((64, "every", "step"), (148, "every k,", "or never")):
        picture.arrow((180, y), (139, y))
        picture.arrow((180, y), (221, y))
        picture.text((180, y - 8), first, anchor="middle", size=11)
        picture.text((180, y + 18), second, anchor="middle", size=11)
    return picture
