"""The output of a run for people and programs: progress, metrics.jsonl, config.json, TensorBoard, a profile."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from iopath.common.file_io import g_pathmgr
from tqdm import tqdm

from dlrm_torchrec.train.checkpoints.checkpoint import Progress
from dlrm_torchrec.train.config import LogConfig
from dlrm_torchrec.train.metrics.gates import check_loss
from dlrm_torchrec.train.metrics.watch import Watch
from dlrm_torchrec.train.timing.step_times import Timing
from dlrm_torchrec.train.world import World


class RunLog:
    """The records of one run, which rank 0 writes; each line of ``metrics.jsonl`` is a JSON object with its step.

    Losses stay on the device until a record is due, because reading a loss waits for the device.
    """

    def __init__(self, folder: str, config: LogConfig, world: World, run: dict[str, Any]) -> None:
        self.folder, self.config, self.world, self._run = folder.rstrip("/"), config, world, run
        self._losses: list[torch.Tensor] = []
        self._bar: tqdm[Any] | None = None
        self._watch: Watch | None = None
        self._samples, self._train_s = 0, 0.0
        self._profiler: torch.profiler.profile | None = None
        self._clock: float | None = None
        if not world.is_main:
            return
        g_pathmgr.mkdirs(self.folder)
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # an optional dependency that only this option needs

            self._tensorboard = SummaryWriter(self.folder)

    def note(self, name: str, value: Any) -> None:
        """Write ``value`` into config.json in place of the setting ``name``, which the run has decided on."""
        self._run[name] = value

    def start(self, step: int, num_steps: int, watch: Watch | None = None) -> None:
        """Begin at ``step``: write config.json, and drop records of later steps that an interrupted run wrote.

        ``watch`` says what is trained on, and from then on warns of what it sees in the records.
        Raises ValueError when the config asks to time steps after the last one.
        """
        if self.config.timed is not None and self.config.timed[1] > num_steps:
            raise ValueError(
                f"timed steps must be among the run's {num_steps} steps: got {self.config.timed}; name earlier steps"
            )
        self._clock = time.perf_counter()
        self._profile(step)
        if not self.world.is_main:
            return
        with g_pathmgr.open(f"{self.folder}/config.json", "w") as stream:
            json.dump(self._run, stream, indent=1, default=_plain)
        path = f"{self.folder}/metrics.jsonl"
        kept = []
        if g_pathmgr.exists(path):
            with g_pathmgr.open(path, "r") as stream:
                kept = [line for line in stream if line.endswith("\n") and json.loads(line)["step"] <= step]
        with g_pathmgr.open(path, "w") as stream:
            stream.writelines(kept)
        if step >= num_steps:
            self.say(f"{self.folder} holds a finished run of {step} steps; choose another --run-dir to train again")
            return
        if watch is not None:
            self._watch = watch
            watch.start(step, num_steps)
        if sys.stderr.isatty():
            self._bar = tqdm(total=num_steps, initial=step, unit="step", dynamic_ncols=True)

    def timing(self, progress: Progress) -> Timing | None:
        """The argument ``timing`` of ``train_pipeline``; None when no steps are left to time after ``progress``."""
        if self.config.timed is None or self.config.timed[1] <= progress.step:
            return None
        first, last = self.config.timed
        return Timing(first=first, last=last, step=progress.step, plan=progress.plan, write=self._write_times)

    def _write_times(self, found: dict[str, Any]) -> None:
        if self.world.is_main:
            path = f"{self.folder}/step_times.json"
            with g_pathmgr.open(path, "w") as stream:
                json.dump(found, stream, indent=1)
            self.say(f"wrote times of single steps to {path}; python -m dlrm_torchrec.sharding.measured reads them")

    def step(self, step: int, loss: torch.Tensor, global_rows: int) -> None:
        """Count one training step of ``global_rows`` samples, and write a record every ``config.every`` steps.

        Raises TrainingError when a loss since the last record was not finite.
        """
        self._losses.append(loss)
        self._samples += global_rows
        self._profile(step)
        if self._bar is not None:
            self._bar.update()
        if step % self.config.every == 0:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Write the mean training loss over all ranks and all steps since the last record, if there were any."""
        if not self._losses:
            return
        total = torch.stack(self._losses).double().sum().reshape(1).cpu()
        dist.all_reduce(total, group=self.world.control)
        window, self._losses = len(self._losses), []
        check_loss(float(total), step - window + 1, step)
        loss = float(total) / window / self.world.size
        self.write(step, {"train/loss": loss, "samples_per_s": self.samples_per_s()})
        if self._watch is not None:
            self._watch.loss(step - window + 1, step, loss)

    def write(self, step: int, record: dict[str, float]) -> None:
        """Write one line to metrics.jsonl and one line to the terminal."""
        if not self.world.is_main:
            return
        with g_pathmgr.open(f"{self.folder}/metrics.jsonl", "a") as stream:
            stream.write(json.dumps({"step": step, **record}) + "\n")
        if self.config.tensorboard:
            for name, value in record.items():
                self._tensorboard.add_scalar(name, value, step)
        text = "  ".join(f"{name} {value:.6g}" for name, value in record.items())
        self.say(f"step {step}  {text}")
        if self._watch is not None:
            self._watch.validation(step, record)

    def say(self, text: str) -> None:
        """Print a line for people on rank 0 without breaking the progress bar; nothing if it is empty."""
        if text and self.world.is_main:
            tqdm.write(text, file=sys.stderr) if self._bar is not None else print(text, file=sys.stderr, flush=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside ``with``, so that an evaluation or a save does not count as training time."""
        self._train_s = self._elapsed_s()
        self._clock = None
        yield
        self._clock = time.perf_counter()

    def stop(self, step: int) -> None:
        """End training after ``step``: write the last record and stop the clock."""
        self.flush(step)
        self._train_s = self._elapsed_s()
        self._clock = None

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
        """Close everything and print the final metrics as the last line of standard output, one JSON object."""
        final = {**metrics, "samples_per_s": self.samples_per_s()}
        if self._bar is not None:
            self._bar.close()
        if "teacher/auc" in metrics and "val/auc" in metrics:
            self.say(f"val/auc {metrics['val/auc']:.4f}; the best possible AUC is {metrics['teacher/auc']:.4f}")
        for name in ("auc", "rmse", "hr@10"):
            if f"baseline/{name}" in metrics and f"val/{name}" in metrics:
                shown, floor = metrics[f"val/{name}"], metrics[f"baseline/{name}"]
                self.say(
                    f"val/{name} {shown:.4f}; that of the baseline is {floor:.4f}, a difference of {shown - floor:+.4f}"
                )
        if self.world.is_main:
            if self.config.tensorboard:
                self._tensorboard.close()
            print(json.dumps(final), flush=True)
        return final


def prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The same metrics with ``prefix`` in front of every name."""
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)
