"""The locks: what they pin, how `make lock` finds their hashes, and that every verb has pip check them."""

from __future__ import annotations

import configparser
import itertools
import os
import random
import re
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from packaging import tags
from packaging.utils import parse_wheel_filename

from dlrm_torchrec.cli.installation import LOCKSTEP
from dlrm_torchrec.cli.installation import minor as minor_of
from tests.locks import FOLDER, lock, stacks

ROOT = FOLDER.parent
LOCKS = sorted(path.name for path in FOLDER.glob("*.txt") if path.name != "audit-exceptions.txt")
SCRIPT = runpy.run_path(str(FOLDER / "lock.py"))
locked: Callable[[str, Callable[[str], dict[str, str]]], str] = SCRIPT["locked"]
needed_files: Callable[[Iterable[str], str], Iterable[str]] = SCRIPT["needed_files"]


@pytest.mark.parametrize("name", LOCKS)
def test_every_lock_holds_pins_with_hashes_and_nothing_else(name: str) -> None:
    assert lock(name)


def test_locks_differ_in_fbgemm_and_cuda_libraries_only() -> None:
    cpu, cuda = lock("cpu.txt"), lock("cuda.txt")
    assert cpu.pop("fbgemm-gpu-cpu") == cuda.pop("fbgemm-gpu")
    assert cpu | lock("cuda-libraries.txt") == cuda
    assert lock("torch-cpu.txt") == {"torch": f"{cpu['torch']}+cpu"}


@pytest.mark.parametrize("stack", stacks())
def test_a_stack_differs_in_torch_fbgemm_and_torchrec_only_which_belong_together(stack: str) -> None:
    ours, other = lock("cpu.txt"), lock(f"stack-{stack}.txt")
    assert ours.keys() == other.keys()
    assert {name for name in ours if ours[name] != other[name]} == {"torch", "fbgemm-gpu-cpu", "torchrec"}
    assert minor_of(other["torch"]) == stack
    assert minor_of(other["fbgemm-gpu-cpu"]) == minor_of(other["torchrec"]) == LOCKSTEP[stack]
    assert lock("cuda-libraries.txt").keys() == lock(f"stack-{stack}-libraries.txt").keys()


def test_the_oldest_stack_is_the_oldest_that_the_metadata_allows() -> None:
    allowed = configparser.ConfigParser()
    allowed.read(ROOT / "setup.cfg")
    oldest = lock(f"stack-{stacks()[0]}.txt")
    wanted = allowed["options"]["install_requires"].split("\n")
    assert {f"torch >= {minor_of(oldest['torch'])}", f"torchrec >= {oldest['torchrec']}"} <= set(wanted)


def supported_tags() -> Iterator[tags.Tag]:
    """The tags that packaging knows of all supported machines."""
    for minor, processor in itertools.product(SCRIPT["PYTHONS"], SCRIPT["PROCESSORS"]):
        manylinux = [f"manylinux_2_{glibc}_{processor}" for glibc in range(40)]
        platforms = [*manylinux, f"manylinux2014_{processor}", f"manylinux2010_{processor}", f"linux_{processor}"]
        yield from tags.cpython_tags((3, minor), [f"cp3{minor}"], platforms)
        yield from tags.compatible_tags((3, minor), f"cp3{minor}", platforms)


def test_wheels_of_the_supported_machines_are_found_as_packaging_finds_them() -> None:
    pythons = ["cp310", "cp311", "cp312", "cp313", "cp314", "cp38", "py3", "py2", "py2.py3", "py311", "pp311"]
    abis = ["cp310", "cp311", "cp313", "cp313t", "abi3", "none", "pypy311_pp73"]
    platforms = ["any", "linux_x86_64", "manylinux_2_28_x86_64", "manylinux2014_aarch64.manylinux_2_17_aarch64"]
    platforms += ["musllinux_1_2_x86_64", "macosx_14_0_arm64", "macosx_11_0_universal2", "win_amd64", "win_arm64"]
    platforms += ["manylinux_2_28_ppc64le", "manylinux1_i686", "manylinux_2_31_riscv64", "android_21_arm64_v8a"]
    builds = list(itertools.product(pythons, abis, platforms))
    wheels = [f"a_b-1.0-{'-'.join(build)}.whl" for build in random.sample(builds, 400)]
    supported = set(supported_tags())
    wanted = {wheel for wheel in wheels if parse_wheel_filename(wheel)[3] & supported}
    assert wanted
    assert set(needed_files([*wheels, "a_b-1.0.1-py3-none-any.whl"], "1.0")) == wanted


def test_a_source_archive_is_locked_only_where_a_machine_finds_no_wheel() -> None:
    names = ["a-1.tar.gz", "a-2.tar.gz", "a-1-cp311-abi3-manylinux_2_28_x86_64.whl"]
    assert list(needed_files(names, "1")) == [names[2], names[0]]
    names += ["a-1-cp311-abi3-manylinux_2_28_aarch64.whl"]
    assert list(needed_files(names, "1")) == [names[3], names[2]]


def test_make_lock_writes_the_hashes_again_and_keeps_all_else() -> None:
    one, two, three, four = (f"{random.getrandbits(256):064x}" for _ in range(4))
    index = {"a-b": {"a_b-1-py3-none-any.whl": one, "a_b-2-py3-none-any.whl": two}, "c": {"c-3.tar.gz": three}}
    build = f"# also c-3+cpu-cp311-cp311-linux_x86_64.whl sha256:{four}"
    head = f"# why\n{build}\n\n-r other.txt\na-b==2"
    old = f"{head} \\\n    --hash=sha256:{one}\n\nc==3+cpu\n"
    new = f"{head} \\\n    --hash=sha256:{two}\n\nc==3+cpu \\\n    --hash=sha256:{four}\n"
    assert locked(old, index.__getitem__) == new
    assert locked(new, index.__getitem__) == new
    with pytest.raises(ValueError, match="a line of a lock must be name==version: got 'a-b>=2'; pin"):
        locked("a-b>=2\n", index.__getitem__)
    with pytest.raises(ValueError, match="a pinned version must have files: got a-b==4; choose"):
        locked("a-b==4\n", index.__getitem__)
    with pytest.raises(ValueError, match=r"a build in a comment must be of a pinned package: got c-3\+cpu"):
        locked(f"{build}\na-b==2\n", index.__getitem__)


def commands(*words: str) -> list[str]:
    """The installations that verbs of the Makefile, with settings among them, would make in a fresh clone."""
    made = subprocess.run(
        ["make", "-n", "-B", f"PYTHON={sys.executable}", "REQUIREMENTS=requirements/cpu.txt", *words],
        cwd=ROOT, text=True, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    return re.findall(r"\S*pip install [^;>\n]*", made.stdout)


def test_every_installation_is_checked_but_for_the_source_itself() -> None:
    installed = commands("setup", "docs", "audit")
    installed += [found for stack in stacks() for found in commands("test-stack", f"STACK={stack}")]
    unchecked = {found.partition("pip install ")[2] for found in installed if "--require-hashes" not in found}
    assert unchecked == {
        "--no-deps --no-build-isolation -e .",
        "--dry-run --no-deps $(grep -o '^torch==[^ ]*' requirements/torch-cpu.txt) ",
    }
    assert {found.split()[-1] for found in installed if "--require-hashes" in found} >= {
        f"requirements/{name}" for name in LOCKS if name not in ("common.txt", "cuda.txt")
    }


def test_a_stack_has_an_environment_of_its_own_for_each_python() -> None:
    folders = {found.split("/bin/")[0] for found in commands("test-stack", f"STACK={stacks()[0]}")}
    assert folders == {f".venv-{stacks()[0]}-python{sys.version_info[0]}.{sys.version_info[1]}"}
    assert commands("test-stack") == commands("test-stack", "STACK=lock") == commands("setup")
    refused = subprocess.run(["make", "test-stack", "STACK=0.1"], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert f"STACK must be lock or one of {' '.join(stacks())}: got 0.1; name one of these" in refused.stderr


def test_one_changed_digit_of_a_hash_stops_an_installation(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a.py", f"random = {random.random()}\n")
        archive.writestr("a-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: a\nVersion: 1\n")
        archive.writestr("a-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("a-1.dist-info/RECORD", "")
    digest = sha256(wheel.read_bytes()).hexdigest()
    place = random.randrange(64)
    changed = f"{digest[:place]}{(int(digest[place], 16) + 1) % 16:x}{digest[place + 1 :]}"
    (command,) = (found for found in commands("docs") if found.endswith("requirements/docs.txt"))
    offline = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_TARGET": str(tmp_path / "site")}

    def install(written: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "lock.txt").write_text(locked("a==1\n", lambda _: {wheel.name: written}))
        words = [sys.executable, "-m", "pip", *command.split()[1:-1], str(tmp_path / "lock.txt")]
        return subprocess.run(words, env=offline, text=True, capture_output=True, timeout=60)

    refused = install(changed)
    assert refused.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in refused.stderr
    assert not (tmp_path / "site").exists()
    assert install(digest).returncode == 0
    assert (tmp_path / "site" / "a.py").exists()


EXCEPTION = re.compile(r"(?:CVE|GHSA|PYSEC)-\S+ (\S+)==(\S+): \S.*; \S.*")


def faults_of_exceptions(text: str) -> list[str]:
    """The lines of a list of exceptions that give no reason, no end, or a version that no lock has."""
    pins = {pin for name in LOCKS for pin in lock(name).items()}
    written = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [line for line in written if not (found := EXCEPTION.fullmatch(line)) or found.groups() not in pins]


def test_every_exception_of_the_audit_is_of_a_locked_version_and_has_its_reason_and_end() -> None:
    pin = "==".join(random.choice(sorted(lock("audit.txt").items())))
    right = f"# why\n\nCVE-2026-1 {pin}: nothing here calls it; its next release\n"
    wrong = ["CVE-2026-1 torch==0.1: nobody calls it; its next release", f"CVE-2026-1 {pin}: nobody calls it"]
    assert faults_of_exceptions(right + "\n".join(wrong)) == wrong
    assert faults_of_exceptions((FOLDER / "audit-exceptions.txt").read_text()) == []


def test_the_audit_ignores_the_exceptions_and_fails_on_what_it_cannot_look_up(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    for path in [*FOLDER.glob("*.txt"), ROOT / "Makefile"]:
        (tmp_path / path.relative_to(ROOT)).write_text(path.read_text())
    (tmp_path / "requirements/audit-exceptions.txt").write_text("# why\nCVE-2026-1 a==1: b; c\nGHSA-x-y a==1: b; c\n")
    installed = tmp_path / ".venv-audit"
    (installed / "bin").mkdir(parents=True)
    (installed / "bin/pip-audit").write_text("#!/bin/sh\necho $@\nexit 1\n")
    (installed / "bin/pip-audit").chmod(0o755)
    (installed / "installed").touch()
    audit = subprocess.run(["make", "-s", "audit"], cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert audit.returncode != 0
    words = audit.stdout.split()
    assert "--strict" in words
    assert words[-4:] == ["--ignore-vuln", "CVE-2026-1", "--ignore-vuln", "GHSA-x-y"]
    audited = {pin for name in words if name.endswith(".txt") for pin in lock(Path(name).name).items()}
    assert audited == {pin for name in LOCKS if name != "torch-cpu.txt" for pin in lock(name).items()}
