"""What an installation holds: the wheel's files, and the environment against its lock."""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.resources
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.locks import lock, stacks

ROOT = Path(__file__).parents[1]
PACKAGE = "dlrm-torchrec"
MADE_HERE = {"build", "dist", "runs", "prepared"}  # folders at the top that git ignores


def unpackaged(folder: str, names: list[str]) -> set[str]:
    """The files of a folder that are made here, and so not copied."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")(folder, names)
    return ignored | (MADE_HERE if Path(folder) == ROOT else set())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree, so that the build leaves nothing behind."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=unpackaged)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "."]
    subprocess.run([*build, "./source"], cwd=folder, check=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return path


def shipped_scripts() -> set[str]:
    """Recipes and data preparation, as paths from the root."""
    patterns = ("recipes/*.py", "data/*/prepare.py", "data/*/README.md")
    return {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}


def test_wheel_holds_library_components_recipes_and_nothing_else(wheel: Path) -> None:
    modules = {
        str(path.relative_to(ROOT))
        for folder in ("dlrm_torchrec", "torchx_components")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".html", ".css", ".js") and path.relative_to(ROOT).parts[1] not in ("recipes", "data")
    }
    scripts = {f"dlrm_torchrec/{name}" for name in shipped_scripts()}
    assert "dlrm_torchrec/recipes/train_dlrm.py" in scripts
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == modules | scripts


def test_wheel_metadata_names_licence_and_components(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name: name for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(names["METADATA"]).decode()
        entry_points = configparser.ConfigParser()
        entry_points.read_string(archive.read(names["entry_points.txt"]).decode())
    assert "License-Expression: BSD-3-Clause" in metadata
    assert "LICENSE" in names
    # the launcher reads them in this order and the last one wins
    expected = [("_", "torchx.components"), ("dist", "torchx_components.dist"), ("dlrm", "torchx_components.dlrm")]
    assert list(entry_points["torchx.components"].items()) == expected


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder into which the wheel, and nothing else, is installed."""
    target = wheel.parent / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, timeout=120)
    return target


def typed(installed: Path, folder: Path, *command: str, timeout: float = 120) -> str:
    """What a command, which must succeed, prints in ``folder`` where only the wheel is installed."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PATH": f"{installed / 'bin'}:{os.environ['PATH']}"}
    finished = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=timeout)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_installed_wheel_finds_and_runs_its_recipes_anywhere(installed: Path, tmp_path: Path) -> None:
    said = typed(installed, tmp_path, "dlrm-recipes", "run", "train_dlrm", "--", "--help")
    assert f"usage: {installed}/dlrm_torchrec/recipes/train_dlrm.py" in said


def test_in_an_empty_folder_a_recipe_is_found_copied_edited_and_compared(installed: Path, tmp_path: Path) -> None:
    recipes = {found["name"]: found for found in json.loads(typed(installed, tmp_path, "dlrm-recipes", "ls", "--json"))}
    assert len(recipes) == len({name for name in shipped_scripts() if name.endswith(".py")})
    assert recipes["train_dlrm"]["command"] == "dlrm-recipes run train_dlrm"
    assert "97 %" in recipes["train_dlrm"]["expected"]
    typed(installed, tmp_path, "dlrm-recipes", "cp", "train_dlrm")
    copy = tmp_path / "train_dlrm.py"
    assert copy.read_text().partition("\n")[2] == (ROOT / "recipes/train_dlrm.py").read_text()
    copy.write_text(copy.read_text().replace("batch_size: int = 2048", "batch_size: int = 4096"))
    assert typed(installed, tmp_path, "dlrm-recipes", "status").startswith("train_dlrm.py: edited (train_dlrm ")
    changes = typed(installed, tmp_path, "dlrm-recipes", "diff", "train_dlrm.py").splitlines()[2:]
    changed = [line.partition("  #")[0] for line in changes if line[0] in "+-"]
    assert changed == ["-    batch_size: int = 2048", "+    batch_size: int = 4096"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_in_an_empty_folder_a_copy_reaches_its_value_on_two_ranks(installed: Path, tmp_path: Path) -> None:
    typed(installed, tmp_path, "dlrm-recipes", "cp", "train_dlrm", "mine.py")
    run = ["dlrm-recipes", "run", "mine.py", "--standalone", "--nproc_per_node", "2", "--", "demo", "--seed", "1"]
    metrics = json.loads(typed(installed, tmp_path, *run, timeout=800).splitlines()[-1])
    assert (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5) >= 0.97


@pytest.mark.slow
def test_in_an_empty_folder_the_launcher_runs_the_recipe_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    command = f"{Path(sys.executable).parent}/torchx run -s local_cwd dlrm.train -j 1x1 train_dlrm demo --help"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed)}
    launched = subprocess.run(
        command.split(), cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=200
    )
    assert launched.returncode == 0, launched.stderr
    assert f"usage: {installed}/dlrm_torchrec/recipes/train_dlrm.py" in launched.stderr


def test_clone_finds_its_recipes_by_the_same_name() -> None:
    package = importlib.resources.files("dlrm_torchrec")
    with importlib.resources.as_file(package / "recipes") as recipes:
        assert {path.name for path in recipes.glob("*.py")} == {path.name for path in (ROOT / "recipes").glob("*.py")}


def closure(package: str, extras: tuple[str, ...] = ()) -> Iterator[str]:
    """Every package that ``package`` needs on this machine, itself included, by the installed metadata."""
    seen: set[tuple[str, str]] = set()
    todo = [(package, extra) for extra in ("", *extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed: str = canonicalize_name(requirement.name)
                if needed == "fbgemm-gpu":
                    needed = installed_fbgemm()
                todo += [(needed, wanted) for wanted in ("", *requirement.extras)]
    yield from sorted({name for name, _ in seen})


def installed_fbgemm() -> str:
    names = {canonicalize_name(found.name) for found in importlib.metadata.distributions()}
    (name,) = names & {"fbgemm-gpu", "fbgemm-gpu-cpu"}  # both at once overwrite each other
    return name


def installed_locks() -> tuple[dict[str, str], dict[str, str]]:
    """The lock that this environment is made from, and the CUDA libraries of its torch."""
    if installed_fbgemm() == "fbgemm-gpu":
        return lock("cuda.txt"), lock("cuda-libraries.txt")
    for stack in stacks():
        pins = lock(f"stack-{stack}.txt")
        if pins["torchrec"] == importlib.metadata.version("torchrec"):
            return pins, lock(f"stack-{stack}-libraries.txt")
    return lock("cpu.txt"), lock("cuda-libraries.txt")


def test_lock_holds_what_is_needed_and_no_more() -> None:
    pins, libraries = installed_locks()
    needed = set(closure(PACKAGE, ("launch", "plot", "serve", "tensorboard", "dev"))) - {PACKAGE}
    assert needed - libraries.keys() == pins.keys() - libraries.keys()
    assert needed & libraries.keys() in (set(), libraries.keys())  # a torch for CPUs needs none of them


def test_environment_is_the_lock() -> None:
    pins, _ = installed_locks()
    installed = {name: importlib.metadata.version(name).partition("+")[0] for name in pins}
    assert installed == pins
