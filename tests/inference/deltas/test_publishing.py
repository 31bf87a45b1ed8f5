"""Publishing: the same bytes however often it was killed, and each window once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlrm_torchrec.inference.deltas.offline import apply_deltas
from dlrm_torchrec.inference.deltas.published import Published
from dlrm_torchrec.inference.publishing import publish
from tests.inference.deltas.evolving import Evolving
from tests.inference.deltas.test_offline import files


def publish_day(
    folder: Path, model: Evolving, parts: Path, program: torch.jit.ScriptModule | None = None, **options: Any
) -> Path:
    """The published version of this day, of which every second is full."""
    day: dict[str, Any] = {
        "window": f"day {model.day}",
        "trained_until": "2024-05-01",
        "full_every": 2,
    }
    return publish(folder, program or model.program(), model.spec(), **model.parts(parts), **(day | options))


class Killed(BaseException):
    """Ends a call like a signal that cannot be caught."""


class Steps:
    """Lets so many calls pass, and kills the next one."""

    def __init__(self, left: int) -> None:
        self.left = left

    def counting(self, of: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == -1:
                raise Killed
            return of(*arguments, **options)

        return run


def test_any_kill_and_a_repeated_call_leave_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Evolving(3)
    for day in range(4):
        program = model.program()
        written = publish_day(tmp_path / "whole", model, tmp_path)
        assert written.name == (f"delta-{day:04}" if day else "base-0000")
        for left in count():  # killed at the first step that changes the disk, then at the second, until none is left
            steps = Steps(left)
            with monkeypatch.context() as patch:
                for of, name in ((Path, "rename"), (shutil, "copyfile"), (shutil, "rmtree"), (np, "save")):
                    patch.setattr(of, name, steps.counting(getattr(of, name)))
                try:
                    publish_day(tmp_path / "killed", model, tmp_path, program)
                except Killed:
                    continue
            break
        assert left >= 4
        publish_day(tmp_path / "killed", model, tmp_path)  # once more, which changes nothing
        assert files(tmp_path / "killed") == files(tmp_path / "whole")
        model.write(tmp_path / f"full-{day}")
        model.next_day()
    published = Published.read(tmp_path / "whole")
    assert (sorted(published.bases), sorted(published.deltas)) == ([0, 2], [1, 2, 3])
    assert [path.name for path in published.chain(3)[1]] == ["delta-0003"]
    assert files(published.bases[2]) == files(tmp_path / "full-2")
    apply_deltas(published.bases[0], [published.deltas[number] for number in (1, 2, 3)], tmp_path / "made")
    assert files(tmp_path / "made") == files(tmp_path / "full-3")


def test_a_window_is_published_once_and_in_order(tmp_path: Path) -> None:
    model, folder = Evolving(4), tmp_path / "published"
    for _ in range(3):
        publish_day(folder, model, tmp_path)
        model.next_day()
    before = files(folder)
    for window, message in (
        ("day 1", "window 'day 1' must be published once and in order: got it again after 'day 2'; leave it out"),
        ("day 2", "window 'day 2' must be published once: got another model than version 2; name the window of"),
        ("", "window must have a name: got an empty one; name the data"),
    ):
        with pytest.raises(ValueError, match=message):
            publish_day(folder, model, tmp_path, window=window)
    with pytest.raises(ValueError, match="trained_until must be a time in ISO 8601, or empty: got 'May'; write it"):
        publish_day(folder, model, tmp_path, trained_until="May")
    assert files(folder) == before
    shutil.rmtree(folder / "base-0002")
    shutil.rmtree(folder / "delta-0001")
    with pytest.raises(ValueError, match="must hold every version up to 2: got no delta-0001; copy it again"):
        publish_day(folder, model, tmp_path)
    shutil.rmtree(folder / "base-0000")
    with pytest.raises(ValueError, match="must hold every version up to 2: got no base-0000; copy it again"):
        publish_day(folder, model, tmp_path)
