from __future__ import annotations

import io
import sys

import pytest

from dlrm_torchrec.preparation.work.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_tell_rows_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("dlrm_torchrec.preparation.work.progress.time.monotonic", lambda: now[0])
    with Progress("writing rows", 4000) as bar:
        for _ in range(6):
            now[0] += 4
            bar.add(1_000_000, 500)
    said = capsys.readouterr().err.splitlines()
    assert said == [  # a line every ten seconds at most
        "writing rows: 38%, 3,000,000 rows, 250,000 rows/s, 20 s left",
        "writing rows: 75%, 6,000,000 rows, 250,000 rows/s, 8 s left",
    ]


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("counting lines", 0) as bar:
        bar.add(5, 10)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    with Progress("writing rows", 1000) as bar:
        for raw_bytes in (250, 250, 600):  # more than was announced is all
            bar.add(50, raw_bytes)
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("writing rows: 100%|")
    assert "00:00 left, " in last
    assert "rows/s" in last
