"""The import law: which part of the tree may import which, and how large files and folders may be."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = "dlrm_torchrec"

# The parts of the library that each part may import besides itself; cli stands above them all.
ALLOWED = {
    "checked_json": set[str](),
    "compiled": set[str](),
    "pages": set[str](),
    "raw_values": set[str](),
    "schema": {"checked_json", "sequence_schema"},
    "sequence_schema": set[str](),
    "table_names": set[str](),
    "terminal": set[str](),
    "command_line": {"terminal"},
    "protocols": {"datasets", "train"},
    "recipe": {"datasets", "embeddings", "schema", "sharding", "train"},
    "train": {"sharding", "table_names", "terminal"},
    "datasets": {"checked_json", "compiled", "schema", "sequence_schema"},
    "preparation": {"compiled", "datasets", "raw_values", "schema", "sequence_schema"},
    "traces": {"compiled", "datasets", "schema"},
    "embeddings": {"compiled", "schema", "table_names"},
    "models": {"embeddings", "schema", "table_names"},
    "sharding": {"compiled", "embeddings", "pages", "schema", "table_names"},
    "inference": {"datasets", "embeddings", "raw_values", "schema", "train"},
}
ALLOWED["cli"] = set(ALLOWED)

# What the files may import that all others stand on: a start of torch costs seconds, and a package has a copy of one.
FOUNDATIONS = {
    "checked_json": (),
    "schema": ("checked_json", "sequence_schema"),
    "sequence_schema": (),
    "raw_values": ("numpy", "pyarrow"),
}

# Folders of scripts: nobody imports them, and a script does not import its neighbours either. A benchmark of several
# files has a folder of its own, in which these import each other.
SCRIPTS = ("recipes", "data", "benchmarks")

MAX_LINES = {LIBRARY: 400, "recipes": 200}
MAX_FILES = 14  # of a folder of the library, besides __init__.py: about a dozen


def violations(root: Path) -> list[str]:
    """One line per broken rule in the tree under ``root``; empty when the law holds."""
    faults = []
    imported: dict[Path, list[str]] = {}  # by each file of the library
    for folder in (LIBRARY, "torchx_components", "tests", *SCRIPTS):
        for file in sorted(_python_files(root / folder)):
            name = file.relative_to(root)
            source = file.read_text()
            imports = list(_imports(ast.parse(source), name))
            faults += [f"{name}: {fault}" for fault in _length_faults(folder, source)]
            for line, module in imports:
                faults += [f"{name}:{line}: {fault}" for fault in _import_faults(file, name, module)]
            if folder == LIBRARY:
                imported[name] = [module for _, module in imports]
    return faults + _crowded_folders(list(imported)) + _circles(imported)


def _python_files(folder: Path) -> Iterator[Path]:
    """Python files below ``folder``, without following links (the library links to the recipes)."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            yield from _python_files(path)
        elif path.suffix == ".py":
            yield path


def _length_faults(folder: str, source: str) -> list[str]:
    lines, limit = len(source.splitlines()), MAX_LINES.get(folder, sys.maxsize)
    return [f"{lines} lines; at most {limit} in {folder}"] if lines > limit else []


def _imports(tree: ast.Module, name: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything imported; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = list(name.parent.parts[: len(name.parent.parts) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"__import__", "importlib.import_module"}:
            yield from ((node.lineno, str(first.value)) for first in node.args[:1] if isinstance(first, ast.Constant))


def _import_faults(file: Path, name: Path, module: str) -> list[str]:
    target = module.split(".")
    folder = name.parts[0]
    if folder == "benchmarks" and len(name.parts) > 2 and target[:2] == list(name.parts[:2]):
        return []
    if target[0] in SCRIPTS or (target[0] == LIBRARY and target[1:2] and target[1] in SCRIPTS):
        return [f"imports {module}; nothing imports {', '.join(SCRIPTS)}"]
    if target[0] == "tests" and folder != "tests":
        return [f"imports {module}; only tests import tests"]
    if folder in SCRIPTS and target[0] in {neighbour.stem for neighbour in file.parent.glob("*.py")}:
        return [f"imports {module}; a script does not import its neighbours"]
    if folder == "torchx_components" and target[0] not in {"torchx", folder, *sys.stdlib_module_names}:
        return [f"imports {module}; torchx_components import torchx and the standard library only"]
    return _library_faults(name, target) if folder == LIBRARY else []


def _library_faults(name: Path, target: list[str]) -> list[str]:
    part = name.with_suffix("").parts[1]  # a folder, or a file beside __init__.py
    if target[0] == "torchx_components":
        return [f"imports {'.'.join(target)}; the library does not know its launcher"]
    allowed = FOUNDATIONS.get(part)
    module = target[1] if target[0] == LIBRARY and len(target) > 1 else target[0]
    if allowed is not None and module not in {*allowed, *sys.stdlib_module_names}:
        return [f"imports {'.'.join(target)}; {part} imports {' and '.join([*allowed, 'the standard library'])} only"]
    if target[0] != LIBRARY or len(target) == 1 or target[1].startswith("__"):
        return []  # another package, or a name of the library's own __init__
    if part not in ALLOWED:
        return [f"imports {'.'.join(target)}; {part} is not in the import law: add it to ALLOWED and to the design"]
    if target[1] != part and target[1] not in ALLOWED[part]:
        return [f"imports {'.'.join(target)}; {part} may import {sorted(ALLOWED[part]) or 'no other part'}"]
    return []


def _crowded_folders(files: list[Path]) -> list[str]:
    counts: dict[Path, int] = defaultdict(int)
    for file in files:
        counts[file.parent] += file.name != "__init__.py"
    return [
        f"{folder}: {count} files; at most {MAX_FILES} in a folder: put some of them into a sub-folder"
        for folder, count in counts.items()
        if count > MAX_FILES
    ]


def _circles(imported: dict[Path, list[str]]) -> list[str]:
    """One line per folder whose files and sub-folders import each other in a circle.

    A sub-folder counts as a whole, so that what lies in it imports no file above it that imports it in turn. Files of
    any two folders that import each other make a circle of sub-folders where their paths part.
    """
    graphs: dict[tuple[str, ...], dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for file, modules in imported.items():
        own = file.with_suffix("").parts
        for module in modules:
            target = tuple(module.split("."))
            depth = next((i for i, (a, b) in enumerate(zip(own, target, strict=False)) if a != b), 0)
            if depth:  # else it is another package, or a folder above
                graphs[own[:depth]][own[depth]][target[depth]] = None
    faults = []
    for folder, graph in graphs.items():
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            faults.append(f"{'/'.join(folder)}: {' imports '.join(reversed(error.args[1]))}; no import circles")
    return faults


def test_the_tree_obeys() -> None:
    assert violations(ROOT) == []


def test_every_part_of_the_library_is_under_the_law() -> None:
    files = {path.relative_to(ROOT / LIBRARY).with_suffix("").parts[0] for path in _python_files(ROOT / LIBRARY)}
    assert files - {"__init__"} <= set(ALLOWED)
    assert {"schema", "datasets", "sharding", "train"} <= files


GOOD = {
    "dlrm_torchrec/__init__.py": "__version__ = '1'",
    "dlrm_torchrec/schema.py": "import dataclasses\nfrom __future__ import annotations",
    "dlrm_torchrec/datasets/stream.py": "import torch\nfrom dlrm_torchrec.schema import Table\nfrom . import batch",
    "dlrm_torchrec/datasets/open.py": "from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream",
    "dlrm_torchrec/datasets/synthetic/clicks.py": "from ..stream import Stream\nfrom . import zipf",
    "dlrm_torchrec/datasets/synthetic/zipf.py": "from dlrm_torchrec.datasets.random import counter",
    "dlrm_torchrec/datasets/random/counter.py": "import numpy",
    "dlrm_torchrec/models/fm.py": "from ..embeddings import rows\nfrom dlrm_torchrec.models import base",
    "dlrm_torchrec/train/log.py": "from dlrm_torchrec import __version__\nimport torchrec",
    "dlrm_torchrec/cli.py": "from dlrm_torchrec.sharding.plan import make_plan",
    "recipes/train_a.py": "from dlrm_torchrec.train import log",
    "recipes/train_b.py": "import torchrec",
    "data/a/prepare.py": "from dlrm_torchrec.datasets import stream",
    "benchmarks/speed.py": "import torch",
    "benchmarks/large/part.py": "from . import rows\nfrom .rows import Row",
    "benchmarks/large/rows.py": "import torch",
    "torchx_components/dist.py": "import sys\nfrom torchx.components import dist",
    "tests/test_a.py": "from tests.distributed import run_ranks",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)


def test_a_lawful_tree_has_no_violations(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("dlrm_torchrec/schema.py", "import torch", "schema imports checked_json and sequence_schema"),
        (
            "dlrm_torchrec/schema.py",
            "from dlrm_torchrec.train import log",
            "schema imports checked_json and sequence_schema",
        ),
        (
            "dlrm_torchrec/train/log.py",
            "from dlrm_torchrec.schema import Table",
            "train may import ['sharding', 'table_names', 'terminal']",
        ),
        (
            "dlrm_torchrec/train/log.py",
            "from dlrm_torchrec import datasets",
            "train may import ['sharding', 'table_names', 'terminal']",
        ),
        (
            "dlrm_torchrec/train/log.py",
            "from ..datasets import stream",
            "train may import ['sharding', 'table_names', 'terminal']",
        ),
        (
            "dlrm_torchrec/train/log.py",
            "def f():\n  import dlrm_torchrec.cli",
            "train may import ['sharding', 'table_names', 'terminal']",
        ),
        (
            "dlrm_torchrec/datasets/x.py",
            "import dlrm_torchrec.models.fm",
            "datasets may import ['checked_json', 'compiled', 'schema', 'sequence_schema']",
        ),
        (
            "dlrm_torchrec/embeddings/x.py",
            "import dlrm_torchrec.sharding",
            "embeddings may import ['compiled', 'schema', 'table_names']",
        ),
        (
            "dlrm_torchrec/sharding/x.py",
            "import dlrm_torchrec.train",
            "sharding may import ['compiled', 'embeddings', 'pages', 'schema', 'table_names']",
        ),
        ("dlrm_torchrec/other/x.py", "import dlrm_torchrec.train", "other is not in the import law"),
        ("dlrm_torchrec/train/x.py", "import torchx_components.dist", "the library does not know its launcher"),
        ("dlrm_torchrec/train/x.py", "import recipes.train_a", "nothing imports recipes, data, benchmarks"),
        ("dlrm_torchrec/train/x.py", "from dlrm_torchrec.recipes import train_a", "nothing imports recipes"),
        ("dlrm_torchrec/train/x.py", "import tests.distributed", "only tests import tests"),
        ("dlrm_torchrec/train/x.py", "import importlib\nimportlib.import_module('data.a')", "nothing imports recipes"),
        ("dlrm_torchrec/train/x.py", "\n" * 401, "401 lines; at most 400 in dlrm_torchrec"),
        ("recipes/train_a.py", "import train_b", "a script does not import its neighbours"),
        ("recipes/train_a.py", "from . import train_b", "nothing imports recipes"),
        ("recipes/train_a.py", "import benchmarks.speed", "nothing imports recipes"),
        ("recipes/train_a.py", "\n" * 201, "201 lines; at most 200 in recipes"),
        ("data/a/prepare.py", "from recipes import train_a", "nothing imports recipes"),
        ("benchmarks/large/part.py", "from .. import speed", "nothing imports recipes"),
        ("benchmarks/speed.py", "from benchmarks.large import rows", "nothing imports recipes"),
        ("tests/test_a.py", "from recipes.train_a import main", "nothing imports recipes"),
        ("torchx_components/dist.py", "import torch", "torchx and the standard library only"),
        ("torchx_components/dist.py", "from dlrm_torchrec import cli", "torchx and the standard library only"),
    ],
)
def test_each_offence_is_found(tmp_path: Path, file: str, source: str, fault: str) -> None:
    write(tmp_path, {**GOOD, file: source})
    (line,) = violations(tmp_path)
    assert line.startswith(file)
    assert fault in line


DATASETS = "dlrm_torchrec/datasets"


@pytest.mark.parametrize(
    ("file", "source", "folder", "circle"),
    [
        ("batch.py", "from .stream import Stream", DATASETS, {"batch", "stream"}),
        ("stream.py", "from . import open", DATASETS, {"open", "stream", "synthetic"}),
        ("stream.py", "def f():\n  import dlrm_torchrec.datasets.synthetic.zipf", DATASETS, {"stream", "synthetic"}),
        (
            "synthetic/teacher.py",
            "from dlrm_torchrec.datasets.open import open_streams",
            DATASETS,
            {"open", "synthetic"},
        ),
        ("random/normal.py", "from dlrm_torchrec.datasets.synthetic import zipf", DATASETS, {"random", "synthetic"}),
        ("synthetic/zipf.py", "from .clicks import Clicks", f"{DATASETS}/synthetic", {"clicks", "zipf"}),
    ],
    ids=["two files", "three", "in a function", "a sub-folder and a file above it", "two sub-folders", "inside of one"],
)
def test_an_import_circle_is_found(tmp_path: Path, file: str, source: str, folder: str, circle: set[str]) -> None:
    write(tmp_path, {**GOOD, f"{DATASETS}/{file}": source})
    (line,) = violations(tmp_path)
    where, _, rest = line.partition(": ")
    assert where == folder
    names = rest.partition(";")[0].split(" imports ")
    assert names[0] == names[-1]
    assert set(names) == circle
    assert len(names) == len(circle) + 1


def test_a_folder_of_too_many_files_is_found(tmp_path: Path) -> None:
    write(tmp_path, {f"dlrm_torchrec/train/file_{number}.py": "" for number in range(MAX_FILES)})
    write(tmp_path, {f"dlrm_torchrec/train/{name}.py": "" for name in ("__init__", "timing/__init__", "timing/watch")})
    assert violations(tmp_path) == []
    write(tmp_path, {"dlrm_torchrec/train/one_more.py": ""})
    assert violations(tmp_path) == [
        "dlrm_torchrec/train: 15 files; at most 14 in a folder: put some of them into a sub-folder"
    ]
