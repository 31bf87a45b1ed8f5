"""What goes into the bundle, and that it comes out on the other machine, whole or not at all."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from requirements.gpu_bundle import make as bundle
from tests.gpu_bundle.libraries import MadeUp, library
from tests.locks import lock

ROOT = Path(__file__).parents[2]
MAX_PIECE_BYTES = 20_000


def unpack(folder: Path, target: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-I", str(folder / "unpack.py"), str(target)]
    return subprocess.run(words, text=True, capture_output=True, timeout=60)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, MadeUp, dict[str, bytes]]:
    """A bundle of a made-up installation: its folder, its library as it was, all other files."""
    before = library()
    others = {"torchrec/__init__.py": b"", "a/b.py": random.randbytes(50_000), "a/b.so": random.randbytes(9)}

    def install(_names: list[str], site: Path, *, tools: Path) -> None:
        assert not tools.exists()
        for name, content in {**others, "fbgemm_gpu/fbgemm.so": before.content}.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_bytes(content)

    monkeypatch.setattr(bundle, "install", install)
    monkeypatch.setattr(bundle, "MAX_PIECE_BYTES", MAX_PIECE_BYTES)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bundle.099").write_text("of an earlier bundle")
    bundle.make(tmp_path / "out", ["fbgemm-gpu", "numpy"], architecture=90)
    return tmp_path / "out", before, others


def test_what_is_packed_comes_out(tmp_path: Path, made: tuple[Path, MadeUp, dict[str, bytes]]) -> None:
    folder, before, others = made
    manifest = json.loads((folder / "manifest.json").read_text())
    sizes = [(folder / piece["name"]).stat().st_size for piece in manifest["pieces"]]
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "unpack.py"} | {
        piece["name"] for piece in manifest["pieces"]
    }
    assert len(sizes) > 2
    assert MAX_PIECE_BYTES >= max(sizes) >= min(sizes) >= max(sizes) - len(sizes)
    assert manifest["packages"] == {
        "fbgemm-gpu": re.search(r"fbgemm-gpu==(\S+)", (bundle.FOLDER / "lock.txt").read_text())[1],  # type: ignore[index]
        "numpy": lock("common.txt")["numpy"],
    }
    done = unpack(folder, tmp_path / "site")
    assert done.stdout == f"export PYTHONPATH={tmp_path / 'site'}\n", done.stderr
    site = tmp_path / "site"
    found = {str(path.relative_to(site)): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    code = found.pop("fbgemm_gpu/fbgemm.so")[before.start : before.start + len(before.wanted)]
    assert code == before.wanted
    assert found == others


def test_the_same_files_make_the_same_bundle(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name / "a").mkdir(parents=True)
        for file in random.sample(["c", "b", "a/d"], 3):
            (tmp_path / name / file).write_text(file)
        bundle.compress(tmp_path / name, tmp_path / f"{name}.tar.xz")
        contents.append((tmp_path / f"{name}.tar.xz").read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("fault", ["absent", "shortened", "flipped", "exchanged"])
def test_a_damaged_bundle_is_refused(tmp_path: Path, made: tuple[Path, MadeUp, dict[str, bytes]], fault: str) -> None:
    folder = made[0]
    one, two = random.sample(sorted(folder.glob("bundle.*")), 2)
    content = bytearray(one.read_bytes())
    if fault == "absent":
        one.unlink()
    elif fault == "shortened":
        one.write_bytes(content[:-1])
    elif fault == "flipped":
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        one.write_bytes(content)
    else:
        one.write_bytes(two.read_bytes())
        two.write_bytes(content)
    done = unpack(folder, tmp_path / "site")
    assert done.returncode != 0
    wrong = min(one, two) if fault == "exchanged" else one
    assert re.search(rf"{wrong.name} must have \d+ bytes with the manifest's SHA-256: got \d+ bytes; copy", done.stderr)
    assert not (tmp_path / "site").exists()


def test_another_python_is_refused(tmp_path: Path, made: tuple[Path, MadeUp, dict[str, bytes]]) -> None:
    manifest = made[0] / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "python": "3.1"}))
    done = unpack(made[0], tmp_path / "site")
    assert "must be the one that the bundle was made for: got 3." in done.stderr
    assert "use python3.1\n" in done.stderr
    assert not (tmp_path / "site").exists()


def needs(package: str) -> set[str]:
    """The packages that a package's metadata names, without extras."""
    named = [Requirement(line) for line in distribution(package).requires or []]
    return {canonicalize_name(need.name) for need in named if not need.marker or need.marker.evaluate({"extra": ""})}


def of_torch() -> set[str]:
    """torch and the packages that it needs, which are there."""
    found, asked = {"torch"}, {"torch"}
    while asked:
        new = needs(asked.pop()) - found
        found, asked = found | new, asked | new
    return found


def test_every_package_has_its_pin_and_all_that_it_needs() -> None:
    names = {*bundle.STACK, *bundle.OTHERS}
    assert names <= bundle.pins().keys()
    assert {name: pin[2] for name, pin in bundle.pins().items() if name in bundle.OTHERS} == {
        name: version for name, version in lock("common.txt").items() if name in bundle.OTHERS
    }
    there = names | of_torch()
    installed = {"fbgemm-gpu": "fbgemm-gpu-cpu"}
    assert {name: missing for name in names if (missing := needs(installed.get(name, name)) - there)} == {}


HIDE_OTHER_PACKAGES = """
import importlib, sys
from importlib.machinery import PathFinder
hidden = set(sys.argv[1].split())
class Visible(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in hidden else super().find_spec(name, path, target)
sys.meta_path = [Visible if finder is PathFinder else finder for finder in sys.meta_path]
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


def test_recipes_library_and_tests_of_the_gpu_import_nothing_else() -> None:
    there = {*bundle.OTHERS, "fbgemm-gpu-cpu", "torchrec", "dlrm-torchrec", "setuptools", *of_torch()}
    modules = {name: set(map(canonicalize_name, owners)) for name, owners in packages_distributions().items()}
    hidden = sorted(name for name, owners in modules.items() if not owners & there)
    assert {"yaml", "torchx", "duckdb"} <= set(hidden)
    files = [*ROOT.glob("recipes/*.py"), *ROOT.glob("tests/gpu/test_*.py"), ROOT / "tests/imports.py"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(files)]
    words = [sys.executable, "-c", HIDE_OTHER_PACKAGES, " ".join(hidden), *names]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
