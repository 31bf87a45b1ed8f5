"""How far a run is and how long it still takes: a progress bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from dlrm_torchrec.terminal.words import about, duration

SLOW_S, SILENCE_S = 5.0, 30.0  # a first step that is worth a line; the longest time without one


class Pace:
    """Counts the steps of this process, ``first`` of which were done before it, out of ``num_steps``.

    Remaining time is estimated by the wall clock, evaluations and saves included, as that is what people wait for. The
    first step, in which kernels are compiled and memory is touched, does not count.
    """

    def __init__(self, first: int, num_steps: int) -> None:
        self.first, self.step, self.num_steps = first, first, num_steps
        self._start = self._told = time.monotonic()
        self._warm: float | None = None  # the end of the first step
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty() and first < num_steps:
            self._bar = tqdm(total=num_steps, initial=first, unit="step", dynamic_ncols=True)

    def advance(self, step: int) -> None:
        """Count the step, and say how far the run is where nothing was said for long."""
        now, self.step = time.monotonic(), step
        if self._warm is None:
            self._warm = now
        if self._bar is not None:
            self._bar.update()
            return
        if step == self.first + 1 and now - self._start >= SLOW_S:
            self.say(f"{self.place(step)}; the first step took {duration(now - self._start)}")
        elif now - self._told >= SILENCE_S:
            self.say(self.place(step))

    def place(self, step: int) -> str:
        """Step, total, share and remaining time, such as ``step 50 of 1,200, 4 %, about 3 min left``."""
        if not self.num_steps or self._bar is not None:  # the bar has the total and the remaining time
            return f"step {step:,}"
        text = f"step {step:,} of {self.num_steps:,}, {100 * step // self.num_steps} %"
        done, left = step - self.first - 1, self.num_steps - step
        if self._warm is not None and done > 0 and left > 0:
            text += f", {about((time.monotonic() - self._warm) / done * left)} left"
        return text

    def say(self, text: str) -> None:
        """Print a line on standard error, above the bar if there is one."""
        self._told = time.monotonic()
        tqdm.write(text, file=sys.stderr) if self._bar is not None else print(text, file=sys.stderr, flush=True)

    def stop(self, step: int) -> None:
        """End at this step; the bar stays on the terminal as it is."""
        self.step = step
        if self._bar is not None:
            self._bar.close()
            self._bar = None
