"""The page of a plan in a real browser, as wide as a desktop and as a phone, light and dark."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

from dlrm_torchrec.sharding.estimate.page.page import page
from tests.pages.browser import DESKTOP, HALF_A_PIXEL, PHONE, SCHEMES, assert_readable, browse, needs_browser
from tests.sharding.estimate.estimates import made_up_estimate

MEASURE = """
found.opened = all("details.table .opened").map(each => each.getBoundingClientRect().height);
found.charts = all(".chart").map(chart => all("tbody tr:has(.bar)", chart).map(row => ({
  whole: wide(row.querySelector(".bar")), kinds: all(".bar span", row).map(each => each.className),
  lengths: all(".bar span", row).map(wide), values: all("data", row).map(each => +each.value),
})));
found.tracks = all("details.table").map(each => ({
  whole: wide(each.querySelector(".track")), lengths: all(".track span", each).map(wide),
  shares: all(".track span", each).map(block => parseFloat(block.style.width)),
}));
found.summaries = all("details.table > summary").map(each => [...each.children].map(box));
"""

pytestmark = needs_browser


@cache
def document() -> str:
    names = [f"t_{number}" for number in range(44)]
    names[3] = "a_table_of_a_name_that_is_" + "very_" * 12 + "long"
    return page(
        [
            made_up_estimate(16, names, topology="2x8:h100", offloaded=True),
            made_up_estimate(2, names[:5], topology="1x2:cpu", devices=False),
            made_up_estimate(1024, names[:6], topology="128x8:h100", seed=1),
        ],
        "train_dlrm mine: a-data-set-of-mine, as prepared, 26 features profiled",
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_can_be_read(tmp_path: Path, width: int, scheme: str) -> None:
    found, complaints = browse(document(), tmp_path, width, scheme, MEASURE)
    assert complaints == []
    assert_readable(found, scheme)
    assert (found["scrolled"] > 0) == (width == PHONE)
    assert len(found["opened"]) == 55
    assert min(found["opened"]) > 100

    for boxes in found["summaries"]:
        assert len(boxes) == 6
        for one, other in combinations(boxes, 2):
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_bars_are_as_long_as_their_numbers(tmp_path: Path, width: int) -> None:
    found, _ = browse(document(), tmp_path, width, "light", MEASURE)
    assert len(found["charts"]) == 3 * 3 + 1 + 2  # memory, time, critical path; DDR of one; two of 1024 ranks folded
    for rows in found["charts"]:
        longest = max(row["values"][0] for row in rows)
        for row in rows:
            assert row["whole"] >= 100
            of_memory = "free" in row["kinds"]
            if of_memory:  # the first number is the sum of the next three, and all but it are a rank's capacity
                capacity = sum(row["values"][1:])
                wanted = [number / capacity for number in row["values"][1:] if number]
            else:
                wanted = [row["values"][0] / longest]
            drawn = row["lengths"] if of_memory else [sum(row["lengths"])]
            assert drawn == pytest.approx([share * row["whole"] for share in wanted], abs=HALF_A_PIXEL)
    assert len(found["tracks"]) == 55
    for track in found["tracks"]:
        shares = [share / 100 * track["whole"] for share in track["shares"]]
        assert track["whole"] >= 100
        assert track["lengths"] == pytest.approx(shares, abs=HALF_A_PIXEL)


def test_the_browser_refuses_whatever_would_be_loaded(tmp_path: Path) -> None:
    changed = document().replace("<main>", '<main><img src="image.png" alt="">')
    _, complaints = browse(changed, tmp_path, DESKTOP, "light")
    assert len(complaints) == 1
    assert "Content Security Policy" in complaints[0]
