"""``dlrm-recipes show`` on the command line: its files, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from iopath.common.file_io import g_pathmgr
from PIL import Image

from dlrm_torchrec.cli import show
from dlrm_torchrec.cli.main import main
from dlrm_torchrec.cli.runs import picture
from tests.cli.runs.folders import write_run
from tests.elsewhere import Elsewhere


def test_it_writes_a_page_again_but_over_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a")
    output = tmp_path / "page.html"
    for _ in range(2):
        assert main(["show", str(tmp_path / "a"), "--output", str(output)]) == 0
        assert capsys.readouterr().out == f"{output}\n"
    assert show.MARK in output.read_bytes()
    output.write_text("mine")
    assert main(["show", str(tmp_path / "a"), "--output", str(output)]) == 2
    assert "output must be a new file, or a page of this command" in capsys.readouterr().err
    assert output.read_text() == "mine"


def test_runs_and_pages_may_be_in_a_store_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a")
    g_pathmgr.register_handler(Elsewhere(tmp_path), allow_override=True)
    assert main(["show", "elsewhere://runs/a/", "--output", "elsewhere://page.html"]) == 0
    assert main(["show", str(tmp_path / "runs/a"), "--output", str(tmp_path / "local.html")]) == 0
    remote, local = ((tmp_path / name).read_text() for name in ("page.html", "local.html"))
    assert remote.count("<figure") == local.count("<figure") == 5
    assert "0.8125" in remote


def test_a_picture_is_drawn_of_every_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1)
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    picture_file = tmp_path / "runs.png"
    assert main(["show", *runs, "--output", str(tmp_path / "page.html"), "--png", str(picture_file)]) == 0
    image = Image.open(picture_file).convert("RGB")
    assert image.width > image.height > 500  # five charts, two in a row
    colours = {colour for _, colour in image.getcolors(1 << 24) or []}
    assert {tuple(bytes.fromhex(paint[1:])) for paint in picture.PAINTS[:2]} <= colours
    assert tuple(bytes.fromhex(picture.PAINTS[2][1:])) not in colours


def test_without_matplotlib_a_picture_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a")
    monkeypatch.setattr(picture, "find_spec", lambda _: None)
    output = tmp_path / "page.html"
    assert main(["show", str(tmp_path / "a"), "--output", str(output), "--png", str(tmp_path / "a.png")]) == 2
    assert "a picture must have matplotlib to draw it: got none; pip install matplotlib" in capsys.readouterr().err
    assert not output.exists()
