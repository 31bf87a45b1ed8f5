"""The workflow that GitHub runs: .ci/run, with few rights, on the two newest Pythons that the locks serve."""

from __future__ import annotations

import re

import yaml

from tests.locks import FOLDER, supported_pythons

TEXT = (FOLDER.parent / ".github/workflows/ci.yml").read_text()
WORKFLOW = yaml.load(TEXT, yaml.BaseLoader)  # which leaves `on` and 3.10 as they are written


def test_it_runs_what_everybody_runs_on_the_two_newest_pythons() -> None:
    assert WORKFLOW["on"].keys() == {"push", "pull_request"}
    (job,) = WORKFLOW["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in supported_pythons()[-2:]]
    assert job["env"]["PYTHON"] == "python${{ matrix.python }}"
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


def test_it_may_read_only_and_names_each_action_by_its_commit() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in WORKFLOW["jobs"].values())
    used = re.findall(r"uses: (.*)", TEXT)
    assert used
    assert all(re.fullmatch(r"\S+@[0-9a-f]{40} # v\d+(\.\d+)*", action) for action in used)
