"""What one core reaches with lookups and MLPs, beside the two limits: bytes from memory and products."""

from __future__ import annotations

import re
from math import log10

from drawings.kit import Drawing

# As rows of RESULTS.md say it, for RMC1, RMC2 and RMC3; a test compares.
LOOKUPS = "0.60 (0.57 to 0.66); 0.95 (0.95 to 0.97); 0.65 (0.60 to 0.65) of its speed, at 8.5, 19.8, 4.1 GB/s"
COPIED = "copying in order 46 GB/s"
MLPS = (
    "0.88 (0.86 to 0.88); 0.95 (0.92 to 0.96); 1.01 (0.98 to 1.01) of its speed, at 31; 37; 82 operations a byte "
    "(lookups 0.25)"
)
PRODUCT = "a product of 1024 x 1024 matrices, 108 Gop/s"
MEASURED = (LOOKUPS, COPIED, MLPS, PRODUCT)
NAMES = ("RMC1", "RMC2", "RMC3")
PER_BYTE = (0.25, 1, 4, 16, 64)  # marks of the axis
LEFT, BOTTOM, DECADE = 40, 250, 82


def numbers(text: str) -> list[float]:
    return [float(each) for each in re.findall(r"\d+(?:\.\d+)?", re.sub(r"1024|\(\S+ to \S+\)", "", text))]


def place(per_byte: float, speed: float) -> tuple[float, float]:
    """Where so many operations a byte and so many Gop/s lie, both logarithmic."""
    return LEFT + DECADE * (log10(per_byte) + 1), BOTTOM - DECADE * (log10(speed) + 0.4)


def draw() -> Drawing:
    shares, reached = numbers(LOOKUPS)[:3], numbers(LOOKUPS)[3:]
    (copied,), (product,) = numbers(COPIED), numbers(PRODUCT)
    mlps, per_byte, each = numbers(MLPS)[:3], numbers(MLPS)[3:6], numbers(MLPS)[6]
    picture = Drawing(
        306,
        "Roofline of one core: lookups do a quarter of an operation a byte and are held by the speed of reading rows "
        "from anywhere; MLPs do 31 to 82 and run near the speed of a product",
    )
    picture.text((14, 20), "one core, batch 256", look="strong")
    picture.text((346, 20), "Gop/s, logarithmic", look="soft", anchor="end", size=11)
    for speed in (1.0, 10.0, 100.0):
        _, y = place(1, speed)
        picture.text((32, y + 4), f"{speed:g}", size=11, anchor="end", look="soft")
    for mark in PER_BYTE:
        x, _ = place(mark, 1)
        picture.text((x, BOTTOM + 16), f"{mark:g}", size=11, anchor="middle", look="soft")
    picture.line((LEFT, 30), (LEFT, BOTTOM), (350, BOTTOM))
    picture.text((346, BOTTOM + 32), "operations a byte", size=11, anchor="end", look="soft")
    picture.line(place(0.1, 0.1 * copied), place(product / copied, product), place(200, product))
    x, y = place(1, copied)
    picture.text((x + 6, y + 12), f"memory, in order: {copied:g} GB/s", size=11)
    x, y = place(product / copied, product)
    picture.text((x, y - 8), f"a product: {product:g} Gop/s", size=11)
    for name, share, speed in zip(NAMES, shares, reached, strict=True):
        x, y = place(each, each * speed)
        picture.box((x - 4, y - 4), (8, 8), kind="table")
        picture.text((x + 14, y + 4), f"{name} looks up {speed:g} of {speed / share:.1f} GB/s", size=11)
    for share, operations in zip(mlps, per_byte, strict=True):
        x, y = place(operations, share * product)
        picture.box((x - 4, y - 4), (8, 8), kind="dense")
    x, y = place(per_byte[0], product)
    picture.text((x - 8, y + 24), "MLPs of RMC1, 2, 3", size=11)
    picture.text((14, 299), "the second number: merely reading the same rows", size=11, look="soft")
    return picture
