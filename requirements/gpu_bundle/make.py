"""Make the bundle that takes FBGEMM, TorchRec and what this project imports to a GPU machine without a network.

    python3.12 -m requirements.gpu_bundle.make --have numpy numba llvmlite pyarrow

The machine has Linux on x86-64, torch 2.11 (CUDA 13) with the packages that torch needs, and the Python that runs this
script, whose pip fetches the wheels. ``--have`` names further packages that it has: large ones need not travel. Of
FBGEMM's device code, that of one architecture stays (fatbin.py); no operator is left out. The output folder gets
pieces of at most 55 MiB, manifest.json and unpack.py, which puts the packages back together over there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from requirements.gpu_bundle.fatbin import keep_architecture

FOLDER = Path(__file__).parent
MAX_PIECE_BYTES = 55 * 2**20

# What this project imports on a GPU machine, its tests and benchmarks/gpu_proof.py included, and what these import in
# turn, beyond torch and the packages that torch's metadata names. Versions and hashes stand in the locks.
STACK = ("fbgemm-gpu", "torchrec")
OTHERS = (
    "anyio",
    "argcomplete",
    "click",
    "cloudpickle",
    "docstring-parser",
    "h11",
    "hypothesis",
    "idna",
    "iniconfig",
    "iopath",
    "lightning-utilities",
    "llvmlite",
    "mypy-extensions",
    "numba",
    "numpy",
    "packaging",
    "pluggy",
    "portalocker",
    "prometheus-client",
    "pyarrow",
    "pygments",
    "pyre-extensions",
    "pytest",
    "pytest-timeout",
    "pyvers",
    "safetensors",
    "sortedcontainers",
    "starlette",
    "tensordict",
    "torchmetrics",
    "tqdm",
    "typeguard",
    "typing-inspect",
    "tyro",
    "uvicorn",
)

PIN = re.compile(r"^([a-z0-9-]+)==(\S+) \\\n(?:    --hash=\S+(?: \\)?\n?)+", re.MULTILINE)


def make(output: Path, names: list[str], *, architecture: int) -> None:
    """Write the bundle of these packages into a folder, over one that lies there."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as work:
        site, archive = Path(work, "site"), Path(work, "bundle.tar.xz")
        install(names, site, tools=Path(work, "tools"))
        for library in sorted(site.glob("fbgemm_gpu/*.so")):
            with library.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
                kept_bytes = keep_architecture(content, architecture)
                print(f"{library.name}: {kept_bytes / 1e6:.1f} of {len(content) / 1e6:.1f} MB run on sm_{architecture}")
            subprocess.run(["fallocate", "--dig-holes", str(library)], check=True)  # 1.5 GB of zeros need no disk
        compress(site, archive)
        pieces = split(archive.read_bytes(), output, max_bytes=MAX_PIECE_BYTES)
    manifest = {
        "python": "{}.{}".format(*sys.version_info),
        "architecture": architecture,
        "packages": {name: pin[2] for name, pin in sorted(pins().items()) if name in names},
        "pieces": pieces,
    }
    (output / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    shutil.copy(FOLDER / "unpack.py", output)


def pins() -> dict[str, re.Match[str]]:
    """Name -> line of each package in the locks, with version and hashes; this folder's lock comes first."""
    locks = [FOLDER / "lock.txt", FOLDER.parent / "common.txt", FOLDER.parent / "build.txt"]
    found = [pin for lock in locks for pin in PIN.finditer(lock.read_text())]
    return {pin[1]: pin for pin in reversed(found)}


def install(names: list[str], site: Path, *, tools: Path) -> None:
    """Let pip put packages into a folder, by their hashes, built with setuptools where there is no wheel."""
    for target, packages in ((tools, ["setuptools"]), (site, names)):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as lock:
            lock.writelines(pins()[name][0].rstrip("\\\n") + "\n" for name in packages)
            lock.flush()
            command = [sys.executable, "-m", "pip", "install", "-q", "--require-hashes", "--no-deps", "--no-compile"]
            command += ["--use-pep517", "--no-build-isolation", "--target", str(target), "-r", lock.name]
            subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tools)}, check=True)
    shutil.rmtree(site / "bin", ignore_errors=True)  # commands that name the Python of this machine


def compress(site: Path, archive: Path) -> None:
    """Write a folder as a .tar.xz in which holes of files stay holes; the same files give the same bytes.

    FBGEMM's kernels are alike: a window of 256 MiB finds the first of them again when the last is compressed.
    """
    words = ["tar", "--create", "--format=gnu", "--sparse", "--sort=name", "--mtime=@0", "--owner=0", "--group=0"]
    words += ["--numeric-owner", f"--directory={site}", "."]
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**28}]
    with lzma.open(archive, "wb", filters=filters) as stream, subprocess.Popen(words, stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        shutil.copyfileobj(tar.stdout, stream)
    if tar.returncode:
        raise subprocess.CalledProcessError(tar.returncode, words)


def split(content: bytes, output: Path, *, max_bytes: int) -> list[dict[str, str | int]]:
    """Write a file as pieces of about equal size; the name, bytes and SHA-256 of each."""
    for old in output.glob("bundle.[0-9][0-9][0-9]"):
        old.unlink()
    num_pieces = -(-len(content) // max_bytes)
    size = -(-len(content) // num_pieces)
    pieces: list[dict[str, str | int]] = []
    for at in range(num_pieces):
        piece = content[at * size : (at + 1) * size]
        (output / f"bundle.{at:03}").write_bytes(piece)
        pieces.append({"name": f"bundle.{at:03}", "bytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()})
    return pieces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/gpu_bundle"), help="Folder that gets the bundle.")
    parser.add_argument(
        "--architecture", type=int, default=90, help="Of the device: 80 A100, 90 H100 and H200, 100 B200."
    )
    parser.add_argument("--have", nargs="*", default=[], choices=OTHERS, metavar="NAME", help="Packages to leave out.")
    options = parser.parse_args()
    names = [*STACK, *(name for name in OTHERS if name not in options.have)]
    make(options.output, names, architecture=options.architecture)
    pieces = json.loads((options.output / "manifest.json").read_text())["pieces"]
    for piece in pieces:
        print(f"{options.output / piece['name']}: {piece['bytes'] / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
