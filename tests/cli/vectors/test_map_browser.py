"""The map in a real browser, as wide as a desktop and as a phone, light and dark: it is drawn, and tells its values."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlrm_torchrec.cli.vectors.page import page
from tests.cli.vectors.made_up import made_up
from tests.pages.browser import DESKTOP, PHONE, SCHEMES, assert_readable, browse, needs_browser

# Points at each of the first points, by the coordinates that the script itself drew them at, and types into the field.
MEASURE = """
const canvas = inside.querySelector("canvas"), points = JSON.parse(inside.getElementById("points").textContent);
const tip = inside.querySelector(".tip"), input = inside.querySelector("input"), edge = canvas.getBoundingClientRect();
found.sheet = box(canvas);
const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
found.painted = pixels.filter(each => each).length;
found.colours = new Set(pixels).size;
const widest = Math.max(...points.x), highest = Math.max(...points.y);
const unit = Math.min((edge.width - 52) / widest, (edge.height - 52) / highest);
found.told = points.names.slice(0, 12).map((name, i) => {
  canvas.dispatchEvent(new view.PointerEvent("pointermove", {
    clientX: edge.left + edge.width / 2 + (points.x[i] - widest / 2) * unit,
    clientY: edge.top + edge.height / 2 - (points.y[i] - highest / 2) * unit }));
  const inner = tip.getBoundingClientRect();
  const inSheet = inner.left >= edge.left - 1 && inner.right <= edge.right + 1 && inner.top >= edge.top - 1;
  return [name, points.seen[i], tip.textContent, !tip.hidden && inSheet];
});
input.value = "<b>7</b>";
input.dispatchEvent(new view.Event("input"));
found.matches = inside.querySelector(".found").textContent;
const [zoomIn, , all_] = inside.querySelectorAll(".zoom button");
const before = canvas.toDataURL();
zoomIn.click();
found.zoomed = canvas.toDataURL() !== before;
all_.click();
found.restored = canvas.toDataURL() === before;
"""

pytestmark = needs_browser


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_can_be_read_and_asked(tmp_path: Path, width: int, scheme: str) -> None:
    found, complaints = browse(page(made_up()[0], by="pca", colour=""), tmp_path, width, scheme, MEASURE)
    assert complaints == []
    assert_readable(found, scheme)
    left, top, right, bottom = found["sheet"]
    assert right - left >= 330
    assert bottom - top >= 150
    assert found["painted"] > 1000
    assert found["colours"] > 20  # shades of a scale, and names
    for name, seen, told, visible in found["told"]:
        assert visible
        assert told == f"{name}seen {seen} times"
    assert found["matches"] == "1 found"
    assert found["zoomed"]
    assert found["restored"]
