"""Pages in a real browser, as wide as a desktop and as a phone, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

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
found.cut = all("main *").filter(each => !each.closest(".unseen, svg") && !each.matches(".scroll")
  && view.getComputedStyle(each).overflowX !== "visible" && each.scrollWidth > each.clientWidth + 1)
  .map(each => each.outerHTML.slice(0, 200));
found.outside = all("main *").filter(each => !each.closest(".scroll")
  && each.getBoundingClientRect().right > view.innerWidth + 1).map(each => each.outerHTML.slice(0, 200));
found.texts = [...new Set(all("main *").filter(each => !each.closest("svg") &&
    [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
  .map(each => view.getComputedStyle(each).color + " on " + below(each)))];
found.scrolled = all(".scroll").filter(each => each.scrollWidth > each.clientWidth + 1).length;
"""

needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: no chromium, chromium-browser or google-chrome"),
]


def browse(document: str, folder: Path, width: int, scheme: str, measure: str = "") -> tuple[dict[str, Any], list[str]]:
    """What MEASURE and ``measure`` find in ``document`` shown ``width`` wide, and what the browser complained of."""
    wrapper = folder / "wrapper.html"
    report = 'document.getElementById("measured").textContent = JSON.stringify(found);'
    wrapper.write_text(
        f'<!DOCTYPE html><iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{escape(document)}">'
        f'</iframe><pre id="measured"></pre><script>onload = () => {{ {MEASURE}{measure}{report} }};</script>'
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


def assert_readable(found: dict[str, Any], scheme: str) -> None:
    """Nothing is cut off or outside of the screen, and all text stands out from what it is drawn over."""
    assert found["overflow_closed"] <= 0
    assert found["overflow_open"] <= 0
    assert found["outside"] == []
    assert found["cut"] == []
    assert len(found["texts"]) >= 2
    assert {text: contrast(text) for text in found["texts"] if contrast(text) < 4.5} == {}
    paper = next(text.split(" on ")[1] for text in found["texts"])
    assert (contrast(f"{paper} on rgb(255, 255, 255)") > 4.5) == (scheme == "dark")


def contrast(texts: str) -> float:
    """WCAG 2's ratio of two colours, ``rgb(0, 0, 0) on rgb(255, 255, 255)``."""
    luminance = []
    for color in texts.split(" on "):
        channels = [int(channel) / 255 for channel in re.findall(r"\d+", color)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    darker, lighter = sorted(luminance)
    return (lighter + 0.05) / (darker + 0.05)
