"""Which bits of a float32 the narrower formats keep."""

from __future__ import annotations

from drawings.kit import Drawing

# sign, exponent and mantissa bits
FORMATS = {"fp32": (1, 8, 23), "tf32": (1, 8, 10), "bf16": (1, 8, 7), "fp16": (1, 5, 10), "int8": (1, 0, 7)}


def draw() -> Drawing:
    picture = Drawing(222, "Bits of sign, exponent and mantissa in float32, TF32, bfloat16, float16 and int8")
    for number, (name, bits) in enumerate(FORMATS.items()):
        x, y = 56.0, 16 + 34 * number
        picture.text((12, y + 17), name, look="strong")
        for count, kind in zip(bits, ("result", "ids", "dense"), strict=True):
            if count:
                text = f"{count}" if count > 2 else ""
                picture.box((x, y), (9 * count, 24), text, kind=kind)
                x += 9 * count
    for left, told, kind in (
        (56, "sign", "result"),
        (116, "exponent: range", "ids"),
        (240, "mantissa: digits", "dense"),
    ):
        picture.box((left, 196), (12, 12), kind=kind)
        picture.text((left + 17, 206), told, size=11)
    return picture
