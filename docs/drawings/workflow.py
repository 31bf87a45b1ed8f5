"""From rows to answers and back a day later: what the recipes, plans and packages are for."""

from __future__ import annotations

from drawings.kit import Drawing


def draw() -> Drawing:
    picture = Drawing(184, "Rows train a recipe, whose tables lie on many ranks by a plan; a package of it serves")
    _part(picture, (12, 8), ("your rows", "any table"), width=76, kind="ids")
    _part(picture, (112, 8), ("recipe", "one file"), width=76, kind="result")
    _part(picture, (212, 8), ("package", "int8, int4"), width=72, kind="dense")
    _part(picture, (304, 8), ("server", "HTTP"), width=52, kind="plain")
    for start, end in ((88, 112), (188, 212), (284, 304)):
        picture.arrow((start, 31), (end, 31))
    picture.box((12, 92), (52, 28), "plan")
    picture.cells((112, 92), [f"rank {rank}" for rank in range(4)], width=46, height=28, kind="table")
    picture.arrow((64, 106), (112, 106))
    picture.line((150, 54), (150, 78), (273, 78))
    for rank in range(4):
        picture.arrow((135 + 46 * rank, 78), (135 + 46 * rank, 92))
    picture.line((135, 78), (150, 78))
    picture.text((156, 71), "tables, sharded", size=11, look="soft")
    picture.text((112, 136), "one CPU, or many GPUs", size=11, look="soft")
    picture.arrow((330, 54), (330, 152), (4, 152), (4, 31), (12, 31))
    picture.text((180, 172), "a day later: the next rows, and a delta for the server", size=11, anchor="middle")
    return picture


def _part(picture: Drawing, at: tuple[float, float], texts: tuple[str, str], *, width: float, kind: str) -> None:
    name, told = texts
    picture.box(at, (width, 46), kind=kind)
    picture.text((at[0] + width / 2, at[1] + 19), name, anchor="middle", look="strong", size=13)
    picture.text((at[0] + width / 2, at[1] + 36), told, anchor="middle", size=11)
