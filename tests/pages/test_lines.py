"""Charts of lines: what thinning keeps, where points are drawn, ticks and the numbers behind a chart."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_torchrec.pages.lines import SIDE, SPANS, Chart, Series, thin

VALUES = st.floats(-1e9, 1e9)
POINTS = st.dictionaries(st.integers(0, 5000), VALUES, min_size=1).map(lambda found: sorted(found.items()))


@given(POINTS)
def test_thinning_keeps_the_extremes_of_every_span_and_invents_nothing(points: list[tuple[int, float]]) -> None:
    last = points[-1][0] + 7
    kept = thin(points, last)
    assert kept == sorted(set(kept))
    assert set(kept) <= set(points)
    assert len(kept) <= 4 * SPANS
    for span in range(SPANS):
        edges = [math.ceil(edge * (last + 1) / SPANS) for edge in (span, span + 1)]
        before, after = ([value for step, value in each if edges[0] <= step < edges[1]] for each in (points, kept))
        assert bool(before) == bool(after)
        if before:
            assert (min(before), max(before), before[0], before[-1]) == (min(after), max(after), after[0], after[-1])


def test_a_short_series_is_whole_and_what_is_not_finite_is_left_out() -> None:
    points = [(10 * number, float(number)) for number in range(100)]
    assert thin(points, 990) == points
    assert thin([(1, math.nan), (2, 0.5), (3, math.inf)], 3) == [(2, 0.5)]


@given(POINTS, st.one_of(st.none(), VALUES))
def test_points_are_drawn_where_their_numbers_are(points: list[tuple[int, float]], level: float | None) -> None:
    chart = Chart("", "", [Series("a", "run-0", points)], last=5000, level=None if level is None else ("level", level))
    drawn = [tuple(map(int, pair)) for pair in re.findall(r"(\d+) (\d+)", chart.lines[0].path)]
    height = chart.high - chart.low
    assert height > 0
    kept = chart.series[0].points
    assert [x for x, _ in drawn] == [round(SIDE * step / 5000) for step, _ in kept]
    for (_, y), (_, value) in zip(drawn, kept, strict=True):
        assert chart.high - y / SIDE * height == pytest.approx(value, abs=0.51 / SIDE * height)
    if chart.level_height is not None:
        assert 0 <= chart.level_height <= SIDE


@pytest.mark.parametrize(("level", "is_drawn"), [(1.5, True), (2.4, True), (0.6, True), (2.6, False), (-3.0, False)])
def test_a_level_that_is_far_from_all_values_is_left_out(level: float, is_drawn: bool) -> None:
    series = [Series("a", "run-0", [(0, 1.0), (1, 2.0)])]
    chart = Chart("", "", series, last=1, level=("level", level))
    assert (chart.level is not None) == is_drawn
    assert chart.high - chart.low <= 1.1 * 1.5


@given(VALUES, st.floats(1e-6, 1e9))
def test_ticks_are_round_few_and_inside(low: float, height: float) -> None:
    chart = Chart("", "", [Series("a", "", [(0, low), (1, low + height)])], last=1)
    assert 2 <= len(chart.value_ticks) <= 7
    places = [tick.place for tick in chart.value_ticks]
    assert places == sorted(places)
    assert places[0] >= -1e-6
    assert places[-1] <= 1 + 1e-6


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.7, 1.0, ["0.7", "0.8", "0.9", "1.0"]),
        (0.99991, 0.99995, ["0.99991", "0.99992", "0.99993", "0.99994", "0.99995"]),
        (0.0, 2e-5, ["0", "5e-06", "1e-05", "1.5e-05", "2e-05"]),
        (1e6, 3e6, ["1M", "1.5M", "2M", "2.5M", "3M"]),
        (5.0, 5.0, ["4.6", "4.8", "5.0", "5.2", "5.4"]),
    ],
)
def test_ticks_tell_their_values_apart(low: float, high: float, texts: list[str]) -> None:
    chart = Chart("", "", [Series("a", "", [(0, low), (1, high)])], last=1)
    assert [tick.text for tick in chart.value_ticks] == texts


@pytest.mark.parametrize("last", [1, 98, 1200, 306_000, 4_195_197])
def test_texts_of_ticks_are_their_steps(last: int) -> None:
    chart = Chart("", "", [Series("a", "", [(last, 1.0)])], last=last)
    scales = {"": 1, "k": 1e3, "M": 1e6}
    assert len(chart.step_ticks) >= 2
    for tick in chart.step_ticks:
        number, unit = re.fullmatch(r"([\d.,]+)([kM]?)", tick.text).groups()  # type: ignore[union-attr]
        assert float(number.replace(",", "")) * scales[unit] == pytest.approx(tick.place * last)


def test_each_moment_has_the_numbers_of_its_step_and_all_share_the_width() -> None:
    series = [Series("a", "", [(0, 1.0), (10, 2.5)]), Series("b", "", [(10, 1234.5), (40, -0.5)])]
    chart = Chart("Loss", "", series, last=50)
    assert [(moment.step, moment.numbers) for moment in chart.moments] == [
        (0, ["1", ""]),
        (10, ["2.500", "1,234"]),
        (40, ["", "-0.5000"]),
    ]
    assert chart.moments[1].title == "step 10\na: 2.500\nb: 1,234"
    assert [moment.left for moment in chart.moments] == [0, 100, 500]
    assert sum(moment.width for moment in chart.moments) == SIDE
    assert chart.summary == "Loss up to step 50: a ends at 2.500; b ends at -0.5000"


def test_a_chart_needs_a_number() -> None:
    with pytest.raises(ValueError, match="chart 'Loss' must have a finite number: got none"):
        Chart("Loss", "", [Series("a", "", [(1, math.nan)])], last=1)
