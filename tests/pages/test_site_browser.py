"""The site in a real browser: on a phone and on a desktop, nothing is cut off and no page scrolls sideways."""

from __future__ import annotations

import functools
import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from tests.pages.browser import CHROMIUM, DESKTOP, FLAGS, PHONE, needs_browser
from tests.recipe import ROOT

pytestmark = [*needs_browser, pytest.mark.timeout(1200)]

# Shows each page in a frame of the given width, and lists what is wider than it outside of boxes that scroll.
WRAPPER = """<!DOCTYPE html><iframe style="border: 0; width: WIDTHpx; height: 900px"></iframe><pre id="measured"></pre>
<script>(async () => {
  const frame = document.querySelector("iframe"), found = {};
  for (const page of PAGES) {
    await new Promise(loaded => { frame.onload = loaded; frame.src = page; });
    const inside = frame.contentDocument, root = inside.documentElement;
    const wide = [...inside.querySelectorAll("article *")].filter(each => !each.closest("pre, svg")
      && each.getBoundingClientRect().right > root.clientWidth + 1).map(each => each.outerHTML.slice(0, 200));
    found[page] = { sideways: root.scrollWidth - root.clientWidth, wide,
      cards: inside.querySelectorAll("table.cards").length, tables: inside.querySelectorAll("article table").length };
  }
  document.getElementById("measured").textContent = JSON.stringify(found);
})();</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of the built site, and the address at which it is served."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "docs/site_pages.py", "--output", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    handler = functools.partial(Quiet, directory=str(folder / "html"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder / "html", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_pages_fit_the_screen(width: int, site: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = site
    pages = sorted(str(page.relative_to(folder)) for page in folder.rglob("*.html"))
    (folder / "wrapper.html").write_text(WRAPPER.replace("WIDTH", str(width)).replace("PAGES", json.dumps(pages)))
    flags = [*FLAGS, "--virtual-time-budget=600000", f"--user-data-dir={tmp_path}"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, f"{address}/wrapper.html"], capture_output=True, text=True, timeout=600, check=True
    )
    (folder / "wrapper.html").unlink()
    (measured,) = re.findall(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    found = json.loads(unescape(measured))
    assert list(found) == pages
    assert {page: each for page, each in found.items() if each["sideways"] > 0 or each["wide"]} == {}
    if width == PHONE:
        assert found["results.html"]["cards"] == found["results.html"]["tables"] > 0
    assert found["glossary.html"]["cards"] == 0
