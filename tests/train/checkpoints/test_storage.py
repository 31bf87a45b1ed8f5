"""Runs in a store that only a user's iopath handler reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iopath.common.file_io import g_pathmgr

from tests.distributed import run_ranks
from tests.elsewhere import Elsewhere
from tests.recipe import _run, records


def _train(folder: str, steps: int) -> dict[str, Any]:
    g_pathmgr.register_handler(Elsewhere(Path(folder)), allow_override=True)
    arguments = ["demo", f"--rows={steps * 128}", "--batch-size=128", "--run-dir=elsewhere://runs", "--log.every=1"]
    return _run("train_dlrm", [*arguments, "--schedule.decay-steps=0", "--checkpoint.every=2", "--checkpoint.keep=1"])


def test_a_run_lives_and_continues_in_a_users_store(tmp_path: Path) -> None:
    whole = run_ranks(2, _train, str(tmp_path / "whole"), 6, join=False)[0]
    run_ranks(2, _train, str(tmp_path / "parts"), 3, join=False)
    parts = run_ranks(2, _train, str(tmp_path / "parts"), 6, join=False)[0]
    del whole["samples_per_s"], parts["samples_per_s"]
    assert parts == whole
    assert [record["step"] for record in records(tmp_path / "parts/runs/demo") if "train/loss" in record] == [
        1, 2, 3, 4, 5, 6,
    ]  # fmt: skip
    kept = [path.parent.name for path in tmp_path.glob("parts/runs/demo/checkpoints/*/checkpoint.json")]
    assert kept == ["step-00000006"]
    assert not list(Path().glob("elsewhere*"))
