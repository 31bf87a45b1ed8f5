"""Charts of numbers against steps: a line for each series, thinned, with ticks and a table of the drawn numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

SPANS = 120  # of equal length, into which the steps are cut; a series keeps its least and greatest value in each
SIDE = 1000  # of the square in which lines are drawn; the page stretches it
DOTTED = 40  # a series with at most so many points shows them as dots
TICKS = 5
TINY = 1e-3  # below it, ticks are written as 2e-05
ALIKE = 1e-9  # share of a value within which others are drawn as equal to it

Point = tuple[int, float]  # a step and its value


@dataclass(frozen=True)
class Series:
    """A line of a chart: the points in the order of their steps; ``kind`` has the CSS classes of its colour."""

    name: str
    kind: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Tick:
    place: float  # from 0, left or bottom, to 1
    text: str


@dataclass(frozen=True)
class Line:
    """A series as it is drawn; ``path`` and ``dots`` are in the language of SVG."""

    name: str
    kind: str
    last: str
    path: str
    dots: str


@dataclass(frozen=True)
class Moment:
    """A drawn step: the strip of the chart that is nearest to it, and the number of each series, empty without one."""

    step: int
    left: float
    width: float
    numbers: list[str]
    title: str  # what the strip says under the pointer


class Chart:
    """Lines over the same steps; non-finite values are left out, and a long series keeps what stands out."""

    def __init__(
        self, title: str, note: str, series: Sequence[Series], *, last: int, level: tuple[str, float] | None = None
    ) -> None:
        """Draws ``series`` from step 0 to ``last``; raises ValueError when they have no finite number.

        ``level`` is the name and the height of a line to compare with, which is left out if it is far from all values.
        """
        self.title, self.note, self.last = title, note, max(1, last)
        thinned = [Series(each.name, each.kind, thin(each.points, self.last)) for each in series]
        self.series = [each for each in thinned if each.points]
        if not self.series:
            raise ValueError(f"chart {title!r} must have a finite number: got none; leave it out")
        values = [value for each in self.series for _, value in each.points]
        near = (max(values) - min(values)) / 2
        is_near = level is not None and min(values) - near <= level[1] <= max(values) + near
        self.level = level if is_near else None
        if self.level is not None:
            values.append(self.level[1])
        self.low, self.high = _widened(min(values), max(values))

    @cached_property
    def lines(self) -> list[Line]:
        return [self._line(each) for each in self.series]

    def _line(self, series: Series) -> Line:
        places = [(round(SIDE * self._across(step)), self._down(value)) for step, value in series.points]
        path = "M" + "L".join(f"{x} {y}" for x, y in places)
        dots = "".join(f"M{x} {y}h0" for x, y in places) if len(places) <= DOTTED else ""
        return Line(series.name, series.kind, number_text(series.points[-1][1]), path, dots)

    @property
    def level_height(self) -> int | None:
        return None if self.level is None else self._down(self.level[1])

    @cached_property
    def value_ticks(self) -> list[Tick]:
        height = self.high - self.low
        return [Tick((tick - self.low) / height, text) for tick, text in _ticks(self.low, self.high)]

    @cached_property
    def step_ticks(self) -> list[Tick]:
        whole = [(tick, text) for tick, text in _ticks(0, self.last) if tick == int(tick)]
        return [Tick(self._across(tick), text) for tick, text in whole]

    @cached_property
    def moments(self) -> list[Moment]:
        """The drawn steps in order."""
        by_series = [dict(each.points) for each in self.series]
        steps = sorted({step for numbers in by_series for step in numbers})
        middles = [(before + after) / 2 for before, after in pairwise(steps)]
        edges = [SIDE * self._across(edge) for edge in (0, *middles, self.last)]
        return [self._moment(*each, by_series) for each in zip(steps, edges[:-1], edges[1:], strict=True)]

    def _moment(self, step: int, left: float, right: float, by_series: Sequence[dict[int, float]]) -> Moment:
        numbers = [number_text(values[step]) if step in values else "" for values in by_series]
        named = [f"{each.name}: {text}" for each, text in zip(self.series, numbers, strict=True) if text]
        title = "\n".join([f"step {step:,}", *named])
        return Moment(step, round(left, 1), round(right - left, 1), numbers, title)

    @property
    def summary(self) -> str:
        """The chart in a sentence, for those who do not see it."""
        ends = "; ".join(f"{line.name} ends at {line.last}" for line in self.lines)
        return f"{self.title} up to step {self.last:,}: {ends}"

    def _across(self, step: float) -> float:
        return step / self.last

    def _down(self, value: float) -> int:
        return round(SIDE * (self.high - value) / (self.high - self.low))


def thin(points: Sequence[Point], last: int) -> list[Point]:
    """The finite points; of each of 120 equal spans of steps only the least, the greatest, and the two at its ends.

    Series of at most 120 records at equal distances are therefore whole.
    """
    spans: dict[int, list[Point]] = {}
    for step, value in points:
        if math.isfinite(value):
            spans.setdefault(step * SPANS // (last + 1), []).append((step, value))
    return [point for span in spans.values() for point in _outstanding(span)]


def _outstanding(span: list[Point]) -> list[Point]:
    least, greatest = (choose(span, key=lambda point: point[1]) for choose in (min, max))
    return sorted({span[0], least, greatest, span[-1]})


def number_text(value: float) -> str:
    """Four digits, or all of a whole number, with thousands separated.

    >>> [number_text(value) for value in (0.80354, 12.5, 230145.2, 0.00021, 2e9, 0.0)]
    ['0.8035', '12.50', '230,145', '0.0002100', '2,000,000,000', '0']
    """
    whole = value == int(value) if math.isfinite(value) else True
    return f"{value:,.0f}" if abs(value) >= 999.5 or whole else f"{value:#.4g}"


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range around both that is not empty."""
    largest = max(abs(low), abs(high))
    margin = 0.05 * (high - low) if high - low > ALIKE * largest else 0.1 * largest or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> Iterator[tuple[float, str]]:
    """Round numbers from ``low`` to ``high``, at most six of them, with a text for each."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough)
    tiny = max(abs(low), abs(high)) < TINY
    for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        yield number * step, f"{number * step:.3g}" if tiny else _tick_text(number * step, step)


def _tick_text(value: float, step: float) -> str:
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if step >= scale / 10 and abs(value) >= scale:
            return f"{value / scale:,.10g}{unit}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}"
