"""Numbers with units, as pages show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SIZES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
SPEEDS = ((10**9, "G rows/s"), (10**6, "M rows/s"), (10**3, "k rows/s"))


@dataclass(frozen=True)
class Quantity:
    """A number as text with its unit; a page also gets the exact value, in an attribute for programs."""

    value: float
    text: str

    def __str__(self) -> str:
        return self.text

    def __html__(self) -> str:
        number, _, unit = self.text.partition(" ")
        return f'<data value="{self.value!r}">{number}&nbsp;<span class="unit">{unit}</span></data>'


def size(count: float, digits: int = 2) -> Quantity:
    """Bytes; 1 GB is 10**9 bytes."""
    return Quantity(count, _scaled(count, SIZES, "B", digits))


def speed(rows_per_second: float) -> Quantity:
    return Quantity(rows_per_second, _scaled(rows_per_second, SPEEDS, "rows/s", 2))


def time(milliseconds: float, digits: int = 3) -> Quantity:
    return Quantity(milliseconds, f"{milliseconds:,.{digits}f} ms")


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}\N{NO-BREAK SPACE}%"


def _scaled(value: float, units: Sequence[tuple[int, str]], smallest: str, digits: int) -> str:
    for scale, unit in units:
        if value >= scale:
            return f"{value / scale:,.{digits}f} {unit}"
    return f"{value:,.0f} {smallest}"
