"""What one sample of RMC1 to RMC3 costs: bytes that are looked up against products in MLPs."""

from __future__ import annotations

from math import log10

from drawings.kit import Drawing

# bytes looked up and multiply-adds of a sample, as the docstring of recipes/train_rmc.py counts them
SHAPES = {"RMC1": (82e3, 100e3), "RMC2": (983e3, 320e3), "RMC3": (26e3, 3.2e6), "dlrm-s": (205e3, 2.5e6)}


def draw() -> Drawing:
    picture = Drawing(266, "RMC2 looks up most bytes per sample; RMC3 does most multiply-adds")
    picture.text((14, 22), "one sample, logarithmic bars", look="strong")
    for number, (name, (looked_up, products)) in enumerate(SHAPES.items()):
        y = 38 + 54 * number
        picture.text((14, y + 24), name, look="strong")
        _bar(picture, y, looked_up, text=f"{looked_up / 1e3:,.0f} kB", kind="table")
        told = f"{products / 1e6:.1f} M" if products > 1e6 else f"{products / 1e3:.0f} k"
        _bar(picture, y + 22, products, text=told, kind="dense")
    picture.box((70, 250), (12, 10), kind="table")
    picture.text((88, 259), "looked up", size=11)
    picture.box((190, 250), (12, 10), kind="dense")
    picture.text((208, 259), "multiply-adds", size=11)
    return picture


def _bar(picture: Drawing, y: float, value: float, *, text: str, kind: str) -> None:
    width = 68 * (log10(value) - 3.4)
    picture.box((70, y), (width, 18), kind=kind)
    picture.text((78 + width, y + 14), text, size=11)
