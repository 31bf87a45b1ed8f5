"""Runs a recipe as its own command line would: with this interpreter, directly or under torchrun."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from dlrm_torchrec.cli.shipped import find
from dlrm_torchrec.terminal.ranks import has_spoken


def script_of(name: str) -> Path:
    """The file of an installed recipe by its name, or of any recipe by its path.

    Raises ValueError when there is no such file.
    """
    path = Path(name)
    if path.suffix != ".py":
        return find(name).path
    if not path.is_file():
        raise ValueError(
            f"recipe must be an installed one's name or a file: got {name!r}, which is no file; correct it"
        )
    return path


def launch(script: Path, torchrun: list[str], arguments: list[str]) -> int:
    """The exit code of ``script``, or of its first process that failed under torchrun.

    Without options for torchrun, the script runs in one process, which replaces this one. Raises ValueError for an
    option that torchrun does not have.
    """
    if not torchrun:
        os.execv(sys.executable, [sys.executable, str(script), *arguments])
    try:  # imported here, because it takes seconds that the other commands need not wait
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    except (ImportError, OSError) as error:
        raise ValueError(f"torchrun must be importable: got {error}; see `dlrm-recipes doctor imports`") from error

    parsed, unknown = run.get_args_parser().parse_known_args([*torchrun, str(script), *arguments])
    if unknown or parsed.training_script != str(script):
        stray = next(iter(unknown), parsed.training_script)
        raise ValueError(
            f"arguments before -- must be options of torchrun: got {stray!r}; "
            f"put the options of the recipe after --, as in `dlrm-recipes run NAME --nproc_per_node 2 -- demo`"
        )
    if (ranks := _ranks_here(run.determine_local_world_size, parsed.nproc_per_node)) > 1:  # else torchrun takes 1
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)  # told below
    try:
        run.run(parsed)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if not has_spoken(failure.error_file_data):
            print(error, file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode  # a signal, numbered as in a shell
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _ranks_here(count: Callable[[str], int], wanted: str) -> int:
    """The ranks that torchrun will start on this host; ValueError for a number that there cannot be."""
    try:
        ranks = count(wanted)
    except ValueError as error:
        raise ValueError(
            f"nproc_per_node must be a number of ranks, gpu, cpu or auto: got {wanted!r}; {error}"
        ) from error
    if ranks < 1:
        raise ValueError(f"nproc_per_node must be at least 1: got {wanted!r}; raise it")
    return ranks
