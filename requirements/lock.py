"""Write into a lock the hash of every file that a supported machine may install: ``make lock``, after a change.

A lock has one line ``name==version`` a package; comments and order are yours. The hashes below each line come from the
index that pip is set up for, which must offer JSON (PEP 691). They are those of the wheels for Linux on the processors
and Pythons named here, and of the source archive where one of these machines finds no wheel. A build that the index
does not have is named in a comment of the lock, with what ``pip hash`` prints for it::

    # also torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl sha256:6746...
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

PYTHONS = (11, 12, 13)  # 3.11 and so on: those that CI knows
PROCESSORS = ("x86_64", "aarch64")  # of Linux; fbgemm has wheels for nothing else

PIN = re.compile(r"([a-z0-9-]+)==([^\s;]+)")
ALSO = re.compile(r"# also (\S+\.whl) sha256:([0-9a-f]{64})")

Files = dict[str, str]  # name of a file of a package -> its SHA-256


def locked(text: str, files_of: Callable[[str], Files]) -> str:
    """A lock with the hashes of today's files, given by ``files_of`` for a package.

    Raises ValueError for a line that pins no version, a version without files, and a build of another version.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--hash=")]
    also = {found[1]: found[2] for line in lines if (found := ALSO.fullmatch(line))}
    written = []
    for line in lines:
        if line == "" or line.startswith(("#", "-r ")):
            written.append(line)
            continue
        pin = PIN.fullmatch(line.removesuffix("\\").strip())
        if pin is None:
            raise ValueError(f"a line of a lock must be name==version: got {line!r}; pin one version of the package")
        files = {**files_of(pin[1]), **{name: also.pop(name) for name in list(also) if _package(name) == pin[1]}}
        hashes = {files[name] for name in needed_files(files, pin[2])}
        if not hashes:
            raise ValueError(f"a pinned version must have files: got {pin[0]}; choose one that the index has")
        written += [f"{pin[0]} \\", *(f"    --hash=sha256:{digest} \\" for digest in sorted(hashes))]
        written[-1] = written[-1].removesuffix(" \\")
    if also:
        raise ValueError(f"a build in a comment must be of a pinned package: got {', '.join(also)}; remove its comment")
    return "\n".join(written) + "\n"


def needed_files(names: Iterable[str], version: str) -> Iterator[str]:
    """The wheels of a version that fit any supported machine, and its source archive if a machine finds no wheel."""
    of_version = [name for name in names if _version(name) == version]
    wheels = {name for name in of_version if name.endswith(".whl")}
    found = {machine: {name for name in wheels if _fits(name, *machine)} for machine in product(PYTHONS, PROCESSORS)}
    yield from sorted(set[str]().union(*found.values()))
    if not all(found.values()):
        yield from (name for name in of_version if name.endswith(".tar.gz"))


def _package(file: str) -> str:
    return re.sub(r"[-_.]+", "-", file.partition("-")[0]).lower()


def _version(file: str) -> str:
    """The version in the name of a wheel (name-version-...) or source archive (name-version.tar.gz)."""
    return file.split("-")[1] if file.endswith(".whl") else file.removesuffix(".tar.gz").rpartition("-")[2]


def _fits(wheel: str, minor: int, processor: str) -> bool:
    """Whether CPython 3.``minor`` on Linux with glibc can install a wheel: its name ends in python-abi-platform."""
    pythons, abi, platforms = wheel.removesuffix(".whl").rsplit("-", 3)[1:]
    here = f"cp3{minor}"
    if abi == "none":
        served = {here, "py3", *(f"py3{older}" for older in range(minor + 1))}
    elif abi == "abi3":
        served = {f"cp3{older}" for older in range(2, minor + 1)}
    else:
        served = {here} if abi == here else set()
    native = re.search(rf"\b(many)?linux\w*_{processor}\b", platforms) is not None
    return not served.isdisjoint(pythons.split(".")) and (native or (abi, platforms) == ("none", "any"))


def files_of_index(package: str) -> Files:
    """All files that the index of this machine's pip has of a package."""
    asked = urllib.request.Request(f"{_index()}/{package}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return {file["filename"]: file["hashes"]["sha256"] for file in json.load(answer)["files"]}


def _index() -> str:
    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], text=True, capture_output=True
    )
    if configured.returncode == 0:
        return configured.stdout.strip().rstrip("/")
    from pip._internal.models.index import PyPI

    return PyPI.simple_url


def main(paths: list[Path]) -> None:
    texts = {path: path.read_text() for path in paths}
    packages = sorted({found[1] for text in texts.values() for found in PIN.finditer(text)})
    with ThreadPoolExecutor(4) as threads:
        files = dict(zip(packages, threads.map(files_of_index, packages), strict=True))
    for path, text in texts.items():
        path.write_text(locked(text, files.__getitem__))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
