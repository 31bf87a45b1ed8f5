"""Every command in the README is executed; so are the docstring examples of the library."""

from __future__ import annotations

import doctest
import gzip
import importlib
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import dlrm_torchrec
from dlrm_torchrec.command_line import parse
from tests.recipe import ROOT, load_recipe
from tests.scripts import run_python

COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for line in block.splitlines()
]
SHARED = ROOT.parent / "shared" / "data" / "census_income_kdd"
LABELS_GUIDE = ROOT / "docs" / "labels_and_weights.md"
# Options that make a command short where it would take minutes; make test-slow runs them as they stand.
SHORT = {
    "--run-dir runs/one": " --rows 40960 --batch-size 1024",
    "recipes/train_fm.py demo": " --rows 40960 --batch-size 1024",
    "-j 2x8 recipes/train_dlrm.py": " --rows 40960 --batch-size 1024",
    "--run-dir runs/mine": " --rows 40960 --batch-size 1024",
    "recipes/train_dlrm_compositional.py": " --rows 40960 --batch-size 1024",
    "--tables.threshold 900 --run-dir runs/hashed": " --rows 40960 --batch-size 1024",
    "recipes/train_dlrm.py demo": " --rows 40960 --batch-size 1024",
    "recipes/train_dlrm.py census": " --epochs 1 --batch-size 2048",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files in a fresh folder, with small raw files of one's own."""
    folder = tmp_path_factory.mktemp("home") / "project"
    folder.mkdir()
    for name in ("recipes", "data", "Makefile", ".torchxconfig", "setup.cfg", "pyproject.toml", "requirements"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    if SHARED.exists():
        (folder.parent / "shared").symlink_to(ROOT.parent / "shared")
    random = np.random.default_rng(0)
    criteo = []
    for _ in range(700):
        values = [str(int(random.integers(0, 100))) for _ in range(13)]
        categories = [f"{int(random.integers(0, 50)):08x}" for _ in range(26)]
        criteo.append("\t".join([str(int(random.integers(0, 2))), *values, *categories]))
    (folder / "train.txt").write_text("\n".join(criteo) + "\n")
    with gzip.open(folder / "train.txt.gz", "wt") as stream:
        stream.write("\n".join(criteo) + "\n")
    rows = [
        f"{['no', 'yes'][int(random.integers(0, 2))]},{random.random():.3f},c{int(random.integers(0, 9))},1|2"
        for _ in range(3000)
    ]
    (folder / "clicks.csv").write_text("\n".join(["clicked,price,city,tags", *rows]) + "\n")
    (folder / "ads.json").write_text(re.findall(r"```json\n(.*?)```", LABELS_GUIDE.read_text(), re.DOTALL)[0])
    (folder / "ads.csv").write_text("clicked,bought,importance,age,item,last_items,tags,tag_scores\n")
    with (folder / "ads.csv").open("a") as stream:
        for _ in range(3000):
            item, click = int(random.integers(40)), int(random.integers(2))
            bought = str(int(random.random() < item / 40)) if click else ""
            items = "|".join(f"i{each}" for each in random.integers(0, 40, random.integers(0, 4)))
            tags, scores = random.integers(0, 9, 2), random.random(2)
            lists = [items, "|".join(map(str, tags)), "|".join(f"{score:.2f}" for score in scores)]
            row = [click, bought, random.choice([1, 4]), random.integers(18, 70), f"i{item}", *lists]
            stream.write(",".join(map(str, row)) + "\n")
    return folder


def typed(command: str, folder: Path, timeout_s: float = 280) -> str:
    """What a command printed, run as typed with .venv activated; the test fails with its output if it fails."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def quickly(command: str, folder: Path) -> str:
    """As ``typed``, but Python runs scripts in a process that has imported this library already."""
    program, *words = shlex.split(command)
    if program != "python":
        return typed(command, folder)
    done = run_python(words, folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def final_metrics(output: str) -> dict[str, float]:
    line = [line for line in output.splitlines() if '"val/auc"' in line][-1]
    return json.loads(line[line.index("{") :])


def test_the_readme_has_commands_and_fits_two_screens() -> None:
    assert len(COMMANDS) >= 12
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, project: Path) -> None:
    if command.startswith("make"):  # what they run is tested here and by CI, which calls make itself
        assert subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True).returncode == 0
        return
    if command.startswith("dlrm-recipes serve"):
        asked_and_ended(command, project)
        return
    if "census" in command and not SHARED.exists():
        pytest.skip("Census-Income (KDD) is not at ../shared/data/census_income_kdd")
    if "quantize_dlrm" in command:  # of the run that the README began with, and for the server after it
        quickly("python recipes/train_dlrm.py demo --rows 40960 --batch-size 1024 --run-dir runs/first", project)
        assert "largest change of a prediction" in quickly(command, project)
        return
    shortest = max((end for end in SHORT if command.endswith(end)), key=len, default="")
    command = command.replace("-j 2x8", "-j 2x1") if "--dryrun" not in command else command  # see as_typed below
    output = quickly(command + SHORT.get(shortest, ""), project)
    if "--dryrun" in command:
        assert "sbatch" in output or "srun" in output or "#SBATCH" in output
    elif "--count" in command:
        assert "540,201,232" in output
    elif "plan_sharding" in command:
        assert "t_cat_20" in output
        assert (project / "plan.html").read_text().startswith("<!DOCTYPE html>")
    elif "-- demo" in command or ("recipes/" in command and "--help" not in command):
        metrics = final_metrics(output)
        assert metrics["steps"] >= 20
        if "teacher/auc" in metrics:  # the rows of one's own are drawn at random
            assert metrics["val/auc"] > 0.6
        assert "finished run" not in output  # of a command before it


def test_no_command_meets_the_run_of_another() -> None:
    """Nor that of ``make train``, which quantize_dlrm and serve take."""
    folders = ["runs/first/demo"]
    for words in map(shlex.split, COMMANDS):
        script = next((word for word in words if re.fullmatch(r"recipes/train_\w+\.py|mine\.py", word)), None)
        if script is None or words[:2] == ["dlrm-recipes", "cp"] or {"diff", "upgrade"} & set(words):
            continue
        recipe = load_recipe("train_dlrm" if script == "mine.py" else Path(script).stem)
        own = words[words.index("--" if "--" in words else script) + 1 :]
        preset, config = parse(recipe.PRESETS, own)
        folders.append(f"{config.run_dir}/{preset}")
    assert len(folders) >= 7
    assert sorted(set(folders)) == sorted(folders)


def asked_and_ended(command: str, folder: Path) -> None:
    """The server that a command starts says where it is, answers there, and ends when it is told to."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [*command.split(), "--port", "0"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        found = re.fullmatch(r"serving (.+) at (http://127\.0\.0\.1:\d+)\n", server.stdout.readline())
        assert found
        with urllib.request.urlopen(f"{found[2]}/readyz") as answer:
            assert json.load(answer) == {"package": found[1]}
        server.terminate()
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()


def test_every_relative_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_file_map_names_what_is_there() -> None:
    text = (ROOT / "README.md").read_text().split("## Files")[1]
    for folder in ("recipes", "data", "torchx_components", "benchmarks", "tests"):
        assert f"{folder}/" in text
    for part in sorted(path.parent.name for path in (ROOT / "dlrm_torchrec").glob("*/__init__.py")):
        assert f"{part}/" in text, part
    for part, told in re.findall(r"^  (\w+)/ +(.+)$", text, re.MULTILINE):
        named = re.findall(r"[\w/]+\.py\b|\w+/(?=,|$)", told)
        assert [name for name in named if not (ROOT / "dlrm_torchrec" / part / name).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_nodes_of_eight_as_typed(project: Path) -> None:
    (command,) = (each for each in COMMANDS if "-j 2x8 recipes/" in each)
    shutil.rmtree(project / "runs", ignore_errors=True)  # of the tests above, which shorten it
    metrics = final_metrics(typed(command, project, timeout_s=1400))
    assert (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5) >= 0.97


@pytest.mark.parametrize(
    "module",
    [
        module.name
        for module in pkgutil.walk_packages(dlrm_torchrec.__path__, "dlrm_torchrec.")
        if not module.name.startswith(("dlrm_torchrec.recipes", "dlrm_torchrec.data."))
    ],
)
def test_docstring_examples(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0
