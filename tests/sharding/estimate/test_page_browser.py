"""The page of a plan in a real browser, as wide as a desktop and as a phone, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from html import escape, unescape
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from dlrm_torchrec.sharding.estimate.page.page import page
from tests.sharding.estimate.estimates import made_up_estimate

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--window-size=1600,1000",
    "--dump-dom",
]
DESKTOP, PHONE = 1440, 390  # CSS pixels
SCHEMES = {"dark": 0, "light": 1}  # Chromium's numbers for them
HALF_A_PIXEL = 0.5

# Runs beside the page, which itself allows no script. Colours are those that text is drawn with, and over.
MEASURE = """
const inside = document.querySelector("iframe").contentDocument, view = inside.defaultView;
const all = (selector, within = inside) => [...within.querySelectorAll(selector)];
const box = element => { const b = element.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
const wide = element => element.getBoundingClientRect().width;
const overflow = () => inside.documentElement.scrollWidth - inside.documentElement.clientWidth;
const below = element => {
  for (; element; element = element.parentElement) {
    const color = view.getComputedStyle(element).backgroundColor;
    if (color !== "rgba(0, 0, 0, 0)") return color;
  }
};
const found = { overflow_closed: overflow() };
all("details").forEach(each => { each.open = true; });
found.overflow_open = overflow();
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
found.cut = all("main *").filter(each => !each.closest(".unseen") && !each.matches(".scroll")
  && view.getComputedStyle(each).overflowX !== "visible" && each.scrollWidth > each.clientWidth + 1)
  .map(each => each.outerHTML.slice(0, 200));
found.outside = all("main *").filter(each => !each.closest(".scroll")
  && each.getBoundingClientRect().right > view.innerWidth + 1).map(each => each.outerHTML.slice(0, 200));
found.texts = [...new Set(all("main *").filter(
    each => [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
  .map(each => view.getComputedStyle(each).color + " on " + below(each)))];
found.scrolled = all(".scroll").filter(each => each.scrollWidth > each.clientWidth + 1).length;
document.getElementById("measured").textContent = JSON.stringify(found);
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: no chromium, chromium-browser or google-chrome"),
]


def browse(document: str, folder: Path, width: int, scheme: str) -> tuple[dict[str, Any], list[str]]:
    """What MEASURE finds in ``document`` shown ``width`` wide, and what the browser complained of."""
    wrapper = folder / "wrapper.html"
    wrapper.write_text(
        f'<!DOCTYPE html><iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{escape(document)}">'
        f'</iframe><pre id="measured"></pre><script>onload = () => {{ {MEASURE} }};</script>'
    )
    done = subprocess.run(
        [
            str(CHROMIUM),
            *FLAGS,
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            f"--user-data-dir={folder / 'profile'}",
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    (measured,) = re.findall(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert measured, complaints
    found: dict[str, Any] = json.loads(unescape(measured))
    return found, complaints


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


def contrast(texts: str) -> float:
    """WCAG 2's ratio of two colours, ``rgb(0, 0, 0) on rgb(255, 255, 255)``."""
    luminance = []
    for color in texts.split(" on "):
        channels = [int(channel) / 255 for channel in re.findall(r"\d+", color)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    darker, lighter = sorted(luminance)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_can_be_read(tmp_path: Path, width: int, scheme: str) -> None:
    found, complaints = browse(document(), tmp_path, width, scheme)
    assert complaints == []
    assert found["overflow_closed"] <= 0
    assert found["overflow_open"] <= 0
    assert found["outside"] == []
    assert found["cut"] == []
    assert (found["scrolled"] > 0) == (width == PHONE)
    assert len(found["opened"]) == 55
    assert min(found["opened"]) > 100

    for boxes in found["summaries"]:
        assert len(boxes) == 6
        for one, other in combinations(boxes, 2):
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)

    assert len(found["texts"]) >= 3
    assert {text: contrast(text) for text in found["texts"] if contrast(text) < 4.5} == {}
    paper = next(text.split(" on ")[1] for text in found["texts"])
    assert (contrast(f"{paper} on rgb(255, 255, 255)") > 4.5) == (scheme == "dark")


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_bars_are_as_long_as_their_numbers(tmp_path: Path, width: int) -> None:
    found, _ = browse(document(), tmp_path, width, "light")
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
