"""Completion, asked as the shells ask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dlrm_torchrec.cli.main import main
from dlrm_torchrec.cli.shipped import installed_recipes


def offered(line: str, script: str, folder: Path) -> set[str]:
    """What bash, with this completion script, offers at the end of ``line``."""
    program = f"""
        {script}
        dlrm-recipes() {{ {sys.executable} -m dlrm_torchrec.cli.main "$@"; }}
        COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9; COMP_WORDS=({line}); COMP_CWORD=1
        _python_argcomplete dlrm-recipes
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", program], cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return {word.strip() for word in done.stdout.splitlines()} - {""}


def test_bash_is_offered_commands_recipes_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    (tmp_path / "mine.py").touch()
    (tmp_path / "notes.txt").touch()
    assert offered("dlrm-recipes ", script, tmp_path) >= {"ls", "cp", "run", "status", "diff", "upgrade", "doctor"}
    assert offered("dlrm-recipes cp prepare_", script, tmp_path) == {
        name for name in installed_recipes() if name.startswith("prepare_")
    }
    assert offered("dlrm-recipes run train_dlr", script, tmp_path) == {
        name for name in installed_recipes() if name.startswith("train_dlr")
    }
    assert offered("dlrm-recipes diff ", script, tmp_path) >= {"mine.py"}
    assert "notes.txt" not in offered("dlrm-recipes diff ", script, tmp_path)


@pytest.mark.parametrize(("shell", "part"), [("zsh", "compdef"), ("fish", "complete --command dlrm-recipes")])
def test_other_shells_get_their_script(shell: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert part in capsys.readouterr().out
