"""The pages on schedulers: every command on them is accepted, and asks for what it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from torchx.cli.argparse_util import ArgOnceAction, torchxconfig_run
from torchx.cli.main import main

from torchx_components import dlrm

PAGES = Path(__file__).parents[2] / "docs" / "schedulers"
COMMANDS = [
    (page.stem, line.split("  #")[0].strip())
    for page in sorted(PAGES.glob("*.md"))
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    for line in block.splitlines()
]


def test_there_is_a_page_per_scheduler_with_every_component() -> None:
    assert {page for page, _ in COMMANDS} == {"local", "slurm", "aws_batch", "kubernetes"}
    for page in {page for page, _ in COMMANDS}:
        words = {word for name, line in COMMANDS if name == page for word in line.split()}
        assert {"dlrm.train", "dlrm.plan", "dlrm.prepare", "dlrm.evaluate"} <= words


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_command(
    page: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dlrm, "_check_fit", lambda *_: None)  # test_dlrm.py has it, and its seconds
    for seen_options in (ArgOnceAction, torchxconfig_run):  # torchx expects one command per process
        monkeypatch.setattr(seen_options, "called_args", set())
    program, run, *arguments = shlex.split(command)
    assert (program, run) == ("torchx", "run")
    main(["run", "--dryrun", *arguments])
    request = capsys.readouterr().out.partition("SCHEDULER REQUEST")[2]
    expected = {
        "local": "log_dir",
        "slurm": "#SBATCH",
        "aws_batch": "jobDefinitionName",
        "kubernetes": "batch.volcano.sh",
    }
    assert expected[page] in request
    assert "dlrm_torchrec." in request or ".py" in request
