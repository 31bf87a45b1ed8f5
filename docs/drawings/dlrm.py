"""A DLRM and its workflow, from a row of data to a probability."""

from __future__ import annotations

from drawings.kit import Drawing


def draw() -> Drawing:
    picture = Drawing(404, "DLRM: dense columns pass an MLP, ids pick rows of tables, products of pairs, a top MLP")
    frame(
        picture,
        dense=("bottom MLP", "layers with ReLU"),
        tables=("embedding tables", "one vector per feature"),
        interaction=("interaction", "dot product of every pair of vectors"),
        top=("top MLP", "layers, and one number at the end"),
        end=("sigmoid", "probability of a click"),
    )
    return picture


def frame(  # each argument is a name and what stands below it
    picture: Drawing,
    *,
    dense: tuple[str, str],
    tables: tuple[str, str],
    interaction: tuple[str, str],
    top: tuple[str, str],
    end: tuple[str, str],
) -> None:
    """The five parts of a DLRM from its inputs at the bottom to its output at the top."""
    picture.text((70, 396), "13 dense columns", anchor="middle", look="soft")
    picture.text((250, 396), "ids of 26 sparse features", anchor="middle", look="soft")
    picture.cells((22, 362), ["0.3", "7", "...", "1"], width=24)
    picture.cells((158, 362), ["17", "4, 9", "...", "201"], width=46, kind="ids")
    _part(picture, (8, 286), dense, width=124, kind="dense")
    _part(picture, (146, 286), tables, width=206, kind="table")
    picture.arrow((70, 362), (70, 333))
    for number in (0, 1, 3):
        picture.arrow((181 + 46 * number, 362), (181 + 46 * number, 333))
        picture.arrow((181 + 46 * number, 286), (181 + 46 * number, 255))
    picture.arrow((70, 286), (70, 255))
    _part(picture, (8, 208), interaction, width=344, kind="result")
    picture.line((24, 286), (24, 271), (4, 271), (4, 190), (60, 190))
    picture.text((72, 194), "the dense vector also goes on itself", look="soft", size=11)
    picture.arrow((60, 190), (60, 165))
    picture.arrow((180, 208), (180, 199))
    picture.arrow((180, 184), (180, 165))
    _part(picture, (8, 118), top, width=344, kind="dense")
    picture.arrow((180, 118), (180, 89))
    _part(picture, (60, 42), end, width=240, kind="plain")
    picture.arrow((180, 42), (180, 22))
    picture.text((180, 16), "0.034", anchor="middle", look="strong")


def _part(picture: Drawing, at: tuple[float, float], texts: tuple[str, str], *, width: float, kind: str) -> None:
    name, told = texts
    picture.box(at, (width, 46), kind=kind)
    picture.text((at[0] + width / 2, at[1] + 19), name, anchor="middle", look="strong", size=13)
    picture.text((at[0] + width / 2, at[1] + 36), told, anchor="middle", size=11)
