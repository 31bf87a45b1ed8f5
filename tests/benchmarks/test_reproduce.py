"""RESULTS.md against what runs: its commands are still accepted, its numbers are read, and a row is run again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.data import load_script
from tests.recipe import ROOT
from tests.test_docs import accept

RESULTS = (ROOT / "RESULTS.md").read_text()
script = load_script(ROOT / "benchmarks/reproduce.py")
ROWS = list(script.rows_of(RESULTS))


def commands(says: str, above: str) -> list[str]:
    """All commands in the last cell of a row; options alone belong to the command above."""
    found = [match[1] for match in script.COMMAND.finditer(says)]
    options = re.findall(r"`(--[^`]+)`", says)
    base = found[-1] if found else above
    return [*found, *(f"{base} {each}" for each in options if "`make" not in says)]


def check_command(command: str) -> None:
    """Fails if a command has no program any more, or not its options."""
    command = re.sub(r"--seed N\b", "--seed 0", command).replace("python3.12 ", "python ")
    if "pytest " in command:
        assert (ROOT / re.findall(r"tests/\S*", command)[0]).exists(), command
    else:
        accept(command)


def test_no_row_is_stale() -> None:
    assert len(ROWS) > 60
    for row in ROWS:
        assert row.command, row.what
        for command in commands(row.says, row.command):
            check_command(command)


@pytest.mark.parametrize(
    "command", ["pytest tests/none.py", "python benchmarks/none.py", "python recipes/train_fm.py --no"]
)
def test_a_stale_command_is_found(command: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(command)):
        check_command(command)


@pytest.mark.parametrize("check", script.CHECKS, ids=lambda check: f"{check.row[:24]} {check.number}")
def test_every_check_has_its_row(check: Any) -> None:
    (row,) = [each for each in ROWS if each.what.startswith(check.row)]
    for command in (check.command or row.command).split(" && "):
        check_command(command)
    if check.read:
        script.published(row.reached, check.after, check.number)


def test_numbers_and_their_spread_are_read() -> None:
    assert script.published("98.3 % (98.3 to 98.4)", "", 0).between == (98.3, 98.4)
    assert script.published(".858 ± .004, .643 ± .002", "", 1).between == pytest.approx((0.639, 0.647))
    assert script.published("2.83 x its samples/s (2.64 to 2.91, 11 rounds)", "", 0).between == (2.64, 2.91)
    assert script.published("0.43 s (0.43 to 0.61); slowest rank 3.09 ms", "slowest rank", 0).value == 3.09
    assert script.published("491,520", "", 0).value == 491_520
    small = [script.published("\N{MINUS SIGN}2.1e-5; \N{MINUS SIGN}3e-4", "", place) for place in (0, 1)]
    assert [(each.value, each.step) for each in small] == [(-2.1e-5, pytest.approx(1e-6)), (-3e-4, pytest.approx(1e-4))]
    with pytest.raises(ValueError, match=r"row must have a number 1 after 'AUC': got 'AUC \.8'; correct the check"):
        script.published("AUC .8", "AUC", 1)


def test_a_number_is_within_its_range_or_as_published() -> None:
    ranged, alone = script.published(".9564 (.9563 to .9566)", "", 0), script.published(".8369", "", 0)
    assert [ranged.verdict(now) for now in (0.95627, 0.9566, 0.95668)] == ["within", "within", "outside"]
    assert [alone.verdict(now) for now in (0.83692, 0.8371)] == ["within", "+0.0002"]


def test_a_metric_that_a_recipe_does_not_report_is_named() -> None:
    report = 'reached\n{"val/auc": 0.7, "steps": 3}'
    assert script.Metric("val/auc")(report) == 0.7
    with pytest.raises(ValueError, match=r"output must have test/auc: got val/auc, steps; correct the check"):
        script.Metric("test/auc")(report)


def test_rows_are_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    says = {"same": "0.5", "other": "0.9", "broken": "0.5"}
    rows = [
        f"| {what} row | {value} (0.4 to 0.6) | goal | 0 | `python made.py {what}` |" for what, value in says.items()
    ]
    rows += ["| likewise row | 0.5 | goal | 0 | likewise |", "| far row | 0.5 | goal | 0 | `make far` |"]
    head = "| what | reached | compared with | seeds | command |"
    (tmp_path / "RESULTS.md").write_text("\n".join([head, "|---|---|---|---|---|", *rows]))
    (tmp_path / "made.py").write_text(
        "import sys\nopen('left', 'x')\nprint('AUC', {'same': .55, 'other': .7}[sys.argv[1]])"
    )
    monkeypatch.setattr(script, "ROOT", tmp_path)
    names = ("same", "other", "broken")
    checks = [script.Check(row=f"{name} row", minutes=1, read=script.Printed(r"AUC (\S+)")) for name in names]
    monkeypatch.setattr(script, "CHECKS", (*checks, script.Check(row="far row", minutes=9)))
    assert script.main(script.Config(minutes=4)) == 1
    lines = {line.split("  ")[-1].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert lines["same row"].startswith("within    0.5 (0.4 to 0.6), now 0.55")
    assert lines["other row"].startswith("outside   0.9 (0.4 to 0.6), now 0.7")
    assert lines["broken row"].startswith("failed")
    assert lines["far row"].startswith("not run   takes 9 minutes more")
    assert lines["likewise row"].startswith("not run   prints a table")
    assert not (tmp_path / "left").exists()  # each row has a folder of its own
    assert script.main(script.Config(rows="same")) == 0
