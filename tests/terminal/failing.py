"""A program of several ranks that fail in the ways named by the arguments, one for each rank."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import time
from dataclasses import dataclass

from dlrm_torchrec.command_line import read_options
from dlrm_torchrec.terminal.failure import run

# by FBGEMM 1.6.0 when it is imported
FBGEMM_SAYS = """
            \033[33m
            _fbgemm_torch_compat_table has no entry for 1.6.0 of FBGEMM;
            cannot determine compatibility with PyTorch 2.11.0
            \033[0m
            """


@dataclass(frozen=True)
class Options:
    """A command line without options."""


def main(how: str) -> str:
    if how == "mistake":
        raise ValueError("lr must be positive: got -1.0; raise it")
    if how == "disk":
        raise OSError(28, "No space left on device", "runs/a")
    if how == "pipe":
        raise BrokenPipeError(32, "Broken pipe")
    if how == "bug":
        return str(int("x"))
    if how == "lost":
        raise RuntimeError("[enforce fail at pair.cc:460] . Connection closed by peer [127.0.0.1]:1")
    if how == "interrupted":
        raise KeyboardInterrupt
    if how == "waits":  # as in a collective operation
        time.sleep(60)
    return how


if __name__ == "__main__":
    ways = [word for word in sys.argv[1:] if not word.startswith("--")]
    if "--options" in sys.argv:
        sys.argv = [*sys.argv[:1], "--no-such"]
        read_options(dict[str, str], "text")
    if "imports" in ways:
        sys.argv = sys.argv[:1]
        read_options(Options, "text")
        logging.warning(FBGEMM_SAYS)
        logging.error("Could not load the library 'fbgemm_gpu_py.so'!")
        ctypes.CDLL("libcuda.so.99")  # as an import does whose library needs a driver
    print(run(main, ways[int(os.environ.get("RANK", 0))]))
