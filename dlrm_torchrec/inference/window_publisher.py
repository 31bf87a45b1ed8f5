"""Publishes the model of a run after each of its windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dlrm_torchrec.datasets.open import vocabularies
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.windows.histories import SequenceWindow
from dlrm_torchrec.datasets.windows.window import Window
from dlrm_torchrec.inference.config import PublishConfig
from dlrm_torchrec.inference.deltas.published import Published
from dlrm_torchrec.inference.publishing import publish
from dlrm_torchrec.inference.quality.report import remedy
from dlrm_torchrec.inference.quantization import Trained, quantize
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.folder import step_path
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.checkpoints.reports import Say, say_on_stderr

_BATCHES, _CALIBRATION_BATCHES = 8, 2  # of a window, on which a served model is measured
_PATIENCE = timedelta(days=1)  # of the other ranks


class WindowPublisher:
    """Publishes a run's checkpoints at the ends of windows, on rank 0 while the other ranks wait.

    It does nothing if ``config`` names no folder. A window after which the served model is much worse than the trained
    one is left out: the next one that is published follows the last version that was.

    Args:
        config: the folder, and how the served model differs from the trained one
        checkpoints: those of the run
        load: gives the model of the checkpoint in a folder, on the CPU
        samples: how the histories that it reads are cut; None for a model of rows
        say: gets a sentence about each window that is left out, on rank 0
    """

    def __init__(
        self,
        config: PublishConfig,
        checkpoints: Checkpoints,
        load: Callable[[str], Trained],
        *,
        samples: SamplesConfig | None = None,
        say: Say = say_on_stderr,
    ) -> None:
        self._config, self._checkpoints, self._load, self._say = config, checkpoints, load, say
        self._samples = None if samples is None else asdict(samples)
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE) if config.folder else None

    def __call__(self, progress: Progress, window: Window | SequenceWindow) -> Progress:
        """Publish the model of the checkpoint at ``progress``, once it is whole, unless ``window`` is still open.

        The result is ``progress``, in which a window that was left out has 0 as its metric ``published``. Raises
        ValueError on all ranks when the options do not fit the model, or when the folder cannot take it.
        """
        if self._group is None or progress.window_open:
            return progress
        self._checkpoints.wait()
        outcome: list[Exception | str] = [""]
        if self._checkpoints.world.is_main:
            try:
                outcome = [self._publish(step_path(self._checkpoints.folder, progress.step), window)]
            except (ValueError, OSError) as error:
                outcome = [error]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        if not outcome[0]:
            return progress
        if self._checkpoints.world.is_main:
            self._say(outcome[0])
        return progress.noted({"published": 0.0})

    def again(self, progress: Progress, windows: Iterable[Window | SequenceWindow]) -> Progress:
        """Publish the window that ends at ``progress``, if it is among ``windows``: a kill may have left half of it."""
        for window in windows:
            if progress.windows and progress.windows[-1]["name"] == window.name:
                return self(progress, window)
        return progress

    def _publish(self, checkpoint: str, window: Window | SequenceWindow) -> str:
        """Publish the model of ``checkpoint``, or say in a sentence why it is left out."""
        how = self._config.quantization
        with torch.random.fork_rng([]):  # building the model draws weights, which training does not notice
            trained = self._load(checkpoint)
        rows = _Sample(window)
        calibration = islice(rows.batches(), _CALIBRATION_BATCHES)
        quantized = quantize(trained, how, rows, split=window.name, calibration=calibration)
        folder = Path(self._config.folder)
        published = Published.read(folder)
        newest = published.newest
        is_new = newest < 0 or published.package(newest)["window"] != window.name
        if is_new and (fault := quantized.report.fault(how.max_auc_loss)):
            kept = f"{folder} stays at version {newest}" if newest >= 0 else f"{folder} has no version yet"
            return (
                f"warning: window {window.name} is not published, and {kept}: {fault}; the next window may pass, or "
                f"{remedy('--publish.quantization.max-auc-loss')}"
            )
        publish(
            folder,
            quantized.program,
            rows.spec,
            vocabularies=vocabularies(window.folder, rows.spec),
            model_facts={"steps": trained.progress.step, **quantized.facts(how)},
            metrics=quantized.metrics,
            samples=self._samples,
            window=window.name,
            trained_until=window.until,
            full_every=self._config.full_every,
        )
        return ""


class _Sample:
    """The first batches of a window, as a stream."""

    def __init__(self, window: Window | SequenceWindow) -> None:
        self._stream = window.evaluation(Ranks(1, 0, 1))
        self.spec: DatasetSpec = self._stream.spec
        self.num_steps = min(_BATCHES, self._stream.num_steps)

    def batches(self, start_step: int = 0) -> Iterator[Any]:
        return islice(self._stream.batches(start_step), self.num_steps - start_step)
