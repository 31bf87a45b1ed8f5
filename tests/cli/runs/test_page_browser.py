"""The page of runs in a real browser, as wide as a desktop and as a phone, light and dark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlrm_torchrec.cli.runs.page import page
from dlrm_torchrec.cli.runs.read import read_runs
from tests.cli.runs.folders import CONFIG, MODEL, write_run
from tests.pages.browser import DESKTOP, HALF_A_PIXEL, PHONE, SCHEMES, assert_readable, browse, needs_browser

MEASURE = """
found.plots = all(".plot").map(plot => {
  const frame = box(plot.querySelector("svg"));
  return {
    frame, lines: all(".line", plot).map(line => {
      const b = line.getBBox(); return [b.x, b.y, b.x + b.width, b.y + b.height]; }),
    drawn: all(".line", plot).map(box), paints: all(".line", plot).map(line => view.getComputedStyle(line).stroke),
    ticks: all(".values span", plot).map(box), edge: box(plot),
    strips: all(".strip", plot).map(box),
  };
});
found.paper = view.getComputedStyle(inside.body).backgroundColor;
"""

pytestmark = needs_browser


@pytest.fixture
def document(tmp_path: Path) -> str:
    names = ["a", "b", "a_run_of_a_name_that_is_" + "very_" * 12 + "long"]
    for number, name in enumerate(names):
        write_run(tmp_path / name, steps=400 * (number + 1), seed=number, config={**CONFIG, "seed": number})
        (tmp_path / name / "model.json").write_text(json.dumps(MODEL))
    return page(read_runs([str(tmp_path / name) for name in names]))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_can_be_read(tmp_path: Path, document: str, width: int, scheme: str) -> None:
    found, complaints = browse(document, tmp_path, width, scheme, MEASURE)
    assert complaints == []
    assert_readable(found, scheme)
    assert len(found["plots"]) == 5
    for plot in found["plots"]:
        left, top, right, bottom = plot["frame"]
        assert right - left >= 250
        assert bottom - top >= 150
        assert len(set(plot["paints"])) == 3
        for line, drawn in zip(plot["lines"], plot["drawn"], strict=True):
            assert min(line) >= 0
            assert max(line) <= 1000
            across = left + line[2] / 1000 * (right - left)
            assert drawn[2] == pytest.approx(across, abs=2 + HALF_A_PIXEL)  # half of the stroke on each side
        for tick in plot["ticks"]:
            assert plot["edge"][0] <= tick[0]
            assert tick[2] <= left
        strips = sorted(plot["strips"])
        assert strips[0][0] == pytest.approx(left, abs=HALF_A_PIXEL)
        assert strips[-1][2] == pytest.approx(right, abs=HALF_A_PIXEL)
