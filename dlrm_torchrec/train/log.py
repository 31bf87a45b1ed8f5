"""The output of a run for people and programs: progress, metrics.jsonl, config.json, TensorBoard, a profile."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist

from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.config import LogConfig
from dlrm_torchrec.train.metrics.gates import check_loss
from dlrm_torchrec.train.metrics.watch import Watch
from dlrm_torchrec.train.output import closing
from dlrm_torchrec.train.output.memory import peak_bytes
from dlrm_torchrec.train.output.pace import Pace
from dlrm_torchrec.train.output.records import append_record, keep_records
from dlrm_torchrec.train.output.trackers import Tracker, check_tracker, open_tracker
from dlrm_torchrec.train.output.whole import write_whole
from dlrm_torchrec.train.processes.lock import RunLock
from dlrm_torchrec.train.schedule import learning_rates
from dlrm_torchrec.train.timing.step_times import Timing
from dlrm_torchrec.train.world import World


class ModelSummary(Protocol):
    """What a model is made of; see ``dlrm_torchrec.models.summary``. Its text is for people."""

    def to_json(self) -> dict[str, Any]: ...


class RunLog:
    """The records of one run, which rank 0 writes; each line of ``metrics.jsonl`` is a JSON object with its step.

    Losses stay on the device until a record is due, because reading a loss waits for the device.
    """

    def __init__(self, folder: str, config: LogConfig, world: World, run: dict[str, Any]) -> None:
        self.folder, self.config, self.world, self._run = folder.rstrip("/"), config, world, run
        self._losses: list[torch.Tensor] = []
        self._pace = Pace(0, 0)
        self._is_over = True
        self._watch: Watch | None = None
        self._samples, self._train_s = 0, 0.0
        self._profiler: torch.profiler.profile | None = None
        self._clock: float | None = None
        self._begun = time.perf_counter()
        self._tracker, self._num_steps, self._first_step = Tracker(), 0, 0
        check_tracker(config.track)
        if not world.is_main:
            return
        self._lock = RunLock(self.folder, self.say)
        world.at_end.callback(self._lock.release)
        if config.tensorboard:
            self._tensorboard = _tensorboard(self.folder)

    def note(self, name: str, value: Any) -> None:
        """Write ``value`` into config.json in place of the setting ``name``, which the run has decided on."""
        self._run[name] = value

    def start(
        self, step: int, num_steps: int, watch: Watch | None = None, *, more: str = "train on with more --epochs"
    ) -> None:
        """Begin at ``step``: write config.json, and drop records of later steps that an interrupted run wrote.

        ``watch`` says what is trained on, and from then on warns of what it sees in the records. ``more`` is what a
        person may do with a run that is over.
        Raises ValueError when the config asks to time steps after the last one.
        """
        if self.config.timed is not None and self.config.timed[1] > num_steps:
            raise ValueError(
                f"timed steps must be among the run's {num_steps} steps: got {self.config.timed}; name earlier steps"
            )
        self._clock, self._num_steps = time.perf_counter(), num_steps
        self._profile(step)
        if not self.world.is_main:
            return
        self._write_json("config.json", self._run)
        self.say(keep_records(self.folder, step))
        self._tracker = open_tracker(self.config.track, self.folder, self._run)
        if step >= num_steps:
            self.say(
                f"{self.folder} holds a finished run of {step} steps; choose another --run-dir to train again, or "
                f"{more}"
            )
        elif watch is not None:
            self._watch = watch
            watch.start(step, num_steps)
        self._pace = Pace(step, num_steps)

    def restart_rates(self, step: int, num_steps: int) -> None:
        """Record the learning rates from ``step`` on as those of a run of ``num_steps`` that begins there."""
        self._first_step, self._num_steps = step, num_steps

    def timing(self, progress: Progress) -> Timing | None:
        """The argument ``timing`` of ``train_pipeline``; None when no steps are left to time after ``progress``."""
        if self.config.timed is None or self.config.timed[1] <= progress.step:
            return None
        first, last = self.config.timed
        return Timing(first=first, last=last, step=progress.step, plan=progress.plan, write=self._write_times)

    def _write_times(self, found: dict[str, Any]) -> None:
        if self.world.is_main:
            self._write_json("step_times.json", found)
            path = f"{self.folder}/step_times.json"
            self.say(f"wrote times of single steps to {path}; python -m dlrm_torchrec.sharding.measured reads them")

    def step(self, step: int, loss: torch.Tensor, global_rows: int) -> None:
        """Count one training step of ``global_rows`` samples, and write a record every ``config.every`` steps.

        Raises TrainingError when a loss since the last record was not finite.
        """
        self._losses.append(loss)
        self._samples += global_rows
        self._profile(step)
        if self.world.is_main:
            self._pace.advance(step)
        if step % self.config.every == 0:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Write the mean training loss over all ranks and all steps since the last record, if there were any.

        The learning rates, and the most bytes that the fullest and the emptiest rank have held so far, go to the files.
        """
        if not self._losses:
            return
        sums = torch.zeros(1 + self.world.size, dtype=torch.float64)  # of losses, and of each rank's bytes
        sums[0] = torch.stack(self._losses).double().sum()
        sums[1 + self.world.rank] = peak_bytes(self.world.device)
        dist.all_reduce(sums, group=self.world.control)
        window, self._losses = len(self._losses), []
        total, *held = sums.tolist()
        check_loss(total, step - window + 1, step)
        loss = total / window / self.world.size
        rates = learning_rates(self._run, step - self._first_step, self._num_steps)
        held_bytes = {"bytes/fullest_rank": max(held), "bytes/emptiest_rank": min(held)}
        self.write(step, {"train/loss": loss, "samples_per_s": self.samples_per_s()}, {**rates, **held_bytes})
        if self._watch is not None:
            self._watch.loss(step - window + 1, step, loss)

    def write(self, step: int, record: dict[str, float], unsaid: Mapping[str, float] | None = None) -> None:
        """Write one line to metrics.jsonl, and one without the numbers of ``unsaid`` to the terminal."""
        if not self.world.is_main:
            return
        whole = {**record, **(unsaid or {})}
        append_record(self.folder, step, whole)
        self._tracker.write(step, whole)
        if self.config.tensorboard:
            for name, value in whole.items():
                self._tensorboard.add_scalar(name, value, step)
        text = "  ".join(f"{name} {value:.6g}" for name, value in record.items())
        self.say(f"{self._pace.place(step)}  {text}")
        if self._watch is not None:
            self._watch.validation(step, record)

    def say(self, text: str) -> None:
        """Print a line for people on rank 0 without breaking the progress bar; nothing if it is empty."""
        if text and self.world.is_main:
            self._pace.say(text)

    def model(self, summary: ModelSummary) -> None:
        """Say what the model is made of, and keep it in model.json."""
        self.say(str(summary))
        if self.world.is_main:
            self._write_json("model.json", summary.to_json())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside ``with``, so that an evaluation or a save does not count as training time."""
        self._train_s = self._elapsed_s()
        self._clock = None
        yield
        self._clock = time.perf_counter()

    def stop(self, step: int, *, is_over: bool) -> bool:
        """End training after ``step``: write the last record and stop the clock.

        ``is_over``, which is returned, says whether the run has ended, or is to be resumed.
        """
        self.flush(step)
        self._is_over = is_over
        self._pace.stop(step)
        self._train_s = self._elapsed_s()
        self._clock = None
        return is_over

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        write_whole(f"{self.folder}/{name}", json.dumps(value, indent=1, default=_plain).encode())

    def _profile(self, step: int) -> None:
        """Start or stop the profiler after ``step`` steps; chrome://tracing and Perfetto show its trace."""
        if self.config.profile is None:
            return
        if step == self.config.profile[0] - 1:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
        elif step == self.config.profile[1] and self._profiler is not None:
            self._profiler.stop()
            self._profiler.export_chrome_trace(f"{self.folder}/trace-rank{self.world.rank}.json")

    def samples_per_s(self) -> float:
        """Training samples of all ranks per second of training time, since this process started."""
        return self._samples / max(1e-9, self._elapsed_s())

    def _elapsed_s(self) -> float:
        return self._train_s + (0.0 if self._clock is None else time.perf_counter() - self._clock)

    def finish(self, metrics: dict[str, float]) -> dict[str, float]:
        """Close everything, tell people what was reached, and print the final metrics as the last line, JSON."""
        final = {**metrics, "samples_per_s": self.samples_per_s()}
        ended = closing.Ended(
            folder=self.folder,
            step=self._pace.step,
            num_steps=self._pace.num_steps,
            begun_at=self._pace.first,
            is_over=self._is_over,
            total_s=time.perf_counter() - self._begun,
            train_s=self._elapsed_s(),
            tensorboard=self.config.tensorboard,
        )
        if self.world.is_main:
            self.say(closing.describe(ended, metrics))
            if self.config.tensorboard:
                self._tensorboard.close()
            self._write_json("final.json", final)
            self._tracker.finish(final)
            self._lock.release()
            print(json.dumps(final), flush=True)
        return final


def prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The same metrics with ``prefix`` in front of every name."""
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


def _tensorboard(folder: str) -> Any:
    """A writer of TensorBoard events; ValueError where the package, which only this option needs, is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"TensorBoard must be installed for --log.tensorboard: got {error}; pip install tensorboard"
        ) from error
    return SummaryWriter(folder)
