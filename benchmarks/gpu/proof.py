"""What a part of the proof is given: where it runs, and how it tells a result the moment it is known."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .packages import OTHERS

Kind = Literal["correctness", "speed", "memory"]


class DeviceFaultError(Exception):
    """The device answers no more; only a new process can use it."""


@dataclass
class Proof:
    """The results of one part after the other; ``tell`` gets each as a JSON object."""

    device: torch.device
    toy: bool  # tiny shapes, of which no speed and no memory is judged
    tell: Callable[[dict[str, Any]], None]
    _since: float = field(default_factory=time.perf_counter)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def correct(self, name: str, value: float, *, at_most: float = 0.0, unit: str = "", note: str = "") -> None:
        """A value, such as a difference, that must not exceed ``at_most``."""
        self._row(name, "correctness", value, unit, limit=f"<= {at_most:g}", ok=bool(value <= at_most), note=note)

    def at_least(self, name: str, value: float, least: float, *, unit: str = "") -> None:
        """A value whose correctness is that it reaches ``least``."""
        self._row(name, "correctness", value, unit, limit=f">= {least:g}", ok=bool(value >= least))

    def measured(
        self,
        name: str,
        value: float,
        *,
        unit: str,
        kind: Kind = "speed",
        at_most: float | None = None,
        at_least: float | None = None,
        note: str = "",
    ) -> None:
        """A speed or a size, with the limit that it should keep, if there is one."""
        limits = [f"{sign} {limit:g}" for sign, limit in ((">=", at_least), ("<=", at_most)) if limit is not None]
        kept = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        self._row(
            name, kind, value, unit, limit=" and ".join(limits), ok=kept if limits and not self.toy else None, note=note
        )

    def skipped(self, name: str, kind: Kind, why: str) -> None:
        self.tell({"name": name, "kind": kind, "ok": None, "note": f"skipped: {why}", "seconds": self._lap()})

    @contextmanager
    def guarded(self, name: str, kind: Kind = "correctness") -> Iterator[None]:
        """Inside ``with``, an error becomes a row; raises DeviceFaultError where nothing can run after it."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
        try:
            yield
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name in OTHERS:
                self.skipped(name, kind, f"needs {error.name}")
                return
            text = "".join(traceback.format_exception(error))[-1500:]
            self.tell({"name": name, "kind": kind, "ok": False, "note": text, "seconds": self._lap()})
            self._check_device()

    def now(self) -> float:
        """Seconds, when all that was launched is done."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def milliseconds(self, run: Callable[..., object], *arguments: Any, times: int) -> float:
        """Of one of ``times`` calls in a row, after one that warms up."""
        run(*arguments)
        begin = self.now()
        for _ in range(times):
            run(*arguments)
        return 1e3 * (self.now() - begin) / times

    def _check_device(self) -> None:
        if self.cuda:
            try:
                torch.cuda.synchronize(self.device)
                torch.ones(1, device=self.device).sum().item()
            except Exception as error:
                raise DeviceFaultError(str(error)) from error

    def _row(self, name: str, kind: Kind, value: float, unit: str, **rest: Any) -> None:
        self.tell({"name": name, "kind": kind, "value": value, "unit": unit, **rest, "seconds": self._lap()})

    def _lap(self) -> float:
        """Seconds since the row before."""
        since, self._since = self._since, time.perf_counter()
        return round(self._since - since, 2)
