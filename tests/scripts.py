"""Scripts run as ``python`` runs them, by processes that have imported this library already."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.distributed import context


def run_python(words: list[str], folder: Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """What ``python``, with these words behind it, does in ``folder``: a script or -m and a module, and its arguments.

    Raises TimeoutError after ``timeout_s``.
    """
    with tempfile.TemporaryDirectory() as captured:
        out, err = Path(captured, "out"), Path(captured, "err")
        process = context.Process(target=_main, args=(words, folder, out, err))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"python {' '.join(words)} still running after {timeout_s} s\n{err.read_text()}")
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def _main(words: list[str], folder: Path, out: Path, err: Path) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.modules.pop(words[1], None)  # imported by tests/imports.py, which runpy would warn of
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
