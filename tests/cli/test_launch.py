"""`dlrm-recipes run`: what is run, with which options, and the exit code that comes back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dlrm_torchrec.cli.launch import launch, script_of
from dlrm_torchrec.cli.main import main
from dlrm_torchrec.cli.shipped import installed_recipes
from tests.distributed import run_ranks

JOB = Path(__file__).with_name("job.py")


def test_one_process_takes_the_place_of_the_command() -> None:
    command = [sys.executable, "-m", "dlrm_torchrec.cli.main", "run", str(JOB), "--", "7", "--", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (7, "alone ['7', '--', '--help']\n")


def test_torchrun_passes_the_exit_code_on(tmp_path: Path) -> None:
    options = ["--standalone", "--nproc_per_node", "2", "--redirects", "1", "--log-dir", str(tmp_path)]
    assert run_ranks(1, launch, JOB, options, ["7", "--rows", "1"], join=False) == [7]
    said = {log.read_text() for log in tmp_path.rglob("stdout.log")}
    assert said == {f"{rank} ['7', '--rows', '1']\n" for rank in (0, 1)}


@pytest.mark.parametrize(
    ("options", "stray"), [(["demo"], "demo"), (["--nproc_per_node", "2", "demo"], "demo"), (["--rows", "1"], "--rows")]
)
def test_what_is_not_for_torchrun_is_refused(
    options: list[str], stray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=f"before -- must be options of torchrun: got '{stray}'; put the options of"):
        launch(JOB, options, ["--rows", "2"])
    assert main(["run", str(JOB), *options]) == 2
    assert capsys.readouterr().err.startswith("dlrm-recipes: arguments before --")


def test_a_name_is_an_installed_recipe_and_a_path_is_a_file(tmp_path: Path) -> None:
    assert script_of("train_dlrm") == installed_recipes()["train_dlrm"].path
    assert script_of(str(JOB)) == JOB
    with pytest.raises(ValueError, match=r"recipe must be an installed one's name or a file: got .*which is no file"):
        script_of(str(tmp_path / "train_dlrm.py"))
