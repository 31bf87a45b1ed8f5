"""Random ways to interrupt a run, and what a torn write may leave in its folder."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.checksums import SummedStream
from dlrm_torchrec.train.checkpoints.folder import all_steps, complete_steps, remove
from dlrm_torchrec.train.checkpoints.marker import MARKER
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.log import RunLog
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from tests.launched import Launched, Trap

# Each moment with the calls before which a process may pause, and which of these calls at most. The signal of "any
# time" comes some seconds after the start, with no pause.
MOMENTS: dict[str, tuple[list[Callable[..., object]], int]] = {
    "start-up": ([Checkpoints.__init__, Checkpoints.load, RunLog.start], 1),
    "step": ([ScheduledLearningRate.set], 40),
    "evaluation": ([nn.Module.eval, Progress.validated], 1),
    "save": ([SummedStream.sync], 6),
    "between data file and marker": ([Checkpoints._commit], 4),
    "after the marker": ([remove], 2),
    "end": ([RunLog.stop, Checkpoints.finish, RunLog.finish], 1),
    "any time": ([], 0),
}
KILLED, STOPPED, INTERRUPTED = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
TARGETS = ("a rank", "all ranks", "the launcher", "all")  # one process alone is all of these
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Kill:
    """One interruption: which signal, to whom, and when."""

    kind: signal.Signals
    target: str
    moment: str
    trap: Trap | None
    after_s: float  # since the first rank has started, without a trap

    def strike(self, command: Launched, draw: random.Random) -> bool:
        """Send the signal when the moment comes; False if the command has ended before."""
        command.wait_for_start(PATIENCE_S)
        start = time.monotonic()
        while command.is_running() and not (
            command.is_trapped() if self.trap is not None else time.monotonic() - start >= self.after_s
        ):
            if time.monotonic() - start > PATIENCE_S:
                raise TimeoutError(f"{self} never came\n{command.err()}")
            time.sleep(0.002)
        ranks = list(command.ranks().values())
        victims = {
            "a rank": [draw.choice(ranks)] if ranks else [command.launcher],
            "all ranks": ranks or [command.launcher],
            "the launcher": [command.launcher],
            "all": [command.launcher, *ranks],
        }[self.target]
        if not command.is_running():
            return False
        for process in dict.fromkeys(victims):
            try:
                os.kill(process, self.kind)
            except ProcessLookupError:  # it has ended by itself, or with the one before it
                continue
        return True


def kills(draw: random.Random, num_ranks: int, count: int) -> list[Kill]:
    """``count`` interruptions at different moments; one at the end of a run comes last."""
    moments = sorted(draw.sample(list(MOMENTS), count), key=lambda moment: moment == "end")
    found = []
    for moment in moments:
        calls, most = MOMENTS[moment]
        trap = Trap(_name(draw.choice(calls)), draw.randint(1, most)) if calls else None
        kind = draw.choice([KILLED, KILLED, STOPPED, INTERRUPTED])
        target = draw.choice(TARGETS) if num_ranks > 1 else "the launcher"
        found.append(Kill(kind, target, moment, trap, after_s=draw.uniform(0.0, 1.5)))
    return found


def _name(call: Callable[..., object]) -> str:
    return f"{call.__module__}:{call.__qualname__}"


def tear(run: Path, draw: random.Random) -> str:
    """Damage what the interrupted run wrote last, as a crash of the machine may; what was done, or nothing."""
    tears = (_tear_checkpoint, _tear_half_a_checkpoint, _tear_records, _tear_config, _tear_lock)
    return draw.choice(tears)(run, draw) if run.exists() else ""


def _tear_checkpoint(run: Path, draw: random.Random) -> str:
    """Unless it is the only whole one."""
    steps = complete_steps(f"{run}/checkpoints")
    if len(steps) < 2:
        return ""
    folder = run / "checkpoints" / f"step-{steps[-1]:08d}"
    return _truncate(max(folder.iterdir(), key=lambda path: (draw.random() < 0.5, path.name == MARKER)), draw)


def _tear_half_a_checkpoint(run: Path, draw: random.Random) -> str:
    """What a killed save has left, or would have."""
    whole = complete_steps(f"{run}/checkpoints")
    half = [step for step in all_steps(f"{run}/checkpoints") if step not in whole]
    if half:
        files = list((run / "checkpoints" / f"step-{half[-1]:08d}").iterdir())
        return _truncate(draw.choice(files), draw) if files else ""
    folder = run / "checkpoints" / f"step-{(whole or [0])[-1] + 1:08d}"
    folder.mkdir(parents=True)
    (folder / f"{MARKER}.tmp").write_bytes(b'{\n "format"')
    return "half a checkpoint"


def _tear_records(run: Path, draw: random.Random) -> str:
    path = run / "metrics.jsonl"
    if not path.exists():
        return ""
    line = b'{"step": 7, "train/loss": 0.5321, "samples_per_s": 9876.5}'
    with path.open("ab") as stream:
        stream.write(draw.choice([line[: draw.randint(1, len(line) - 1)], bytes(draw.randint(1, 99))]))
    return "metrics.jsonl"


def _tear_config(run: Path, draw: random.Random) -> str:
    return _truncate(run / "config.json", draw) if (run / "config.json").exists() else ""


def _tear_lock(run: Path, draw: random.Random) -> str:
    dead = {"token": "0", "pid": 4194304, "host": "elsewhere", "born": 1, "since": "long ago", "program": "train"}
    path = run / "lock.json"
    if path.exists() and draw.random() < 0.5:
        return _truncate(path, draw)
    path.write_text(draw.choice(["", "{", json.dumps(dead), json.dumps(dead | {"kernel": 7}), "\0" * 1024]))
    return "lock.json"


def _truncate(path: Path, draw: random.Random) -> str:
    os.truncate(path, draw.randrange(max(1, path.stat().st_size)))
    return path.name
