"""A recipe run as its command line would run it: by this interpreter, plainly or under torchrun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dlrm_torchrec.cli.shipped import find


def script_of(name: str) -> Path:
    """The file of a recipe on the shelf, or of one's own given by its path.

    Raises ValueError when there is neither.
    """
    path = Path(name)
    if path.suffix != ".py":
        return find(name).path
    if not path.is_file():
        raise ValueError(f"recipe must be a name on the shelf or a file: got {name!r}, and there is no such file")
    return path


def launch(script: Path, torchrun: list[str], arguments: list[str]) -> int:
    """The exit code of ``script``, or of its first process that failed under torchrun.

    Without options for torchrun it is one process, which takes this one's place. Raises ValueError when something
    among the options is not torchrun's.
    """
    if not torchrun:
        os.execv(sys.executable, [sys.executable, str(script), *arguments])
    try:  # here, for it takes seconds that no other command should wait
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    except (ImportError, OSError) as error:
        raise ValueError(f"torchrun must be importable: got {error}; see `dlrm-recipes doctor imports`") from error

    parsed, unknown = run.get_args_parser().parse_known_args([*torchrun, str(script), *arguments])
    if unknown or parsed.training_script != str(script):
        stray = next(iter(unknown), parsed.training_script)
        raise ValueError(
            f"what stands before -- must be options of torchrun: got {stray!r}; "
            f"put what is for the recipe behind it, as in `dlrm-recipes run NAME --nproc_per_node 2 -- demo`"
        )
    try:
        run.run(parsed)
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode  # a signal, as a shell says it
    except SignalException as error:
        return 128 + error.sigval
    return 0
