"""metrics.jsonl: what no run wrote whole is set aside, whatever it is and wherever it stands."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dlrm_torchrec.train.output.records import append_record, keep_records, read_records
from tests.recipe import ROOT

BAD = [
    b"",
    b"   ",
    b"\0" * 40,
    b'{"step": 4, "train/l',
    b"null",
    b"[4]",
    b"hello",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"step": "4"}',
    b'{"step": true}',
    b'{"step": -1}',
    b'{"step": 4.0}',
    b'{"loss": 4}',
    b'{"step": 4, "train/loss": "low"}',
    b'{"step": 4}{"step": 5}',
    b'{"step": ' + b"9" * 5000 + b"}",
]


@pytest.mark.parametrize("seed", range(8))
def test_bad_lines_anywhere_are_set_aside_and_nothing_else_is_lost(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    good = [json.dumps({"step": step, "train/loss": draw.random()}).encode() for step in range(1, 21)]
    lines = [*good]
    bad = draw.sample(BAD, draw.randint(1, len(BAD)))
    for line in bad:
        lines.insert(draw.randint(0, len(lines)), line)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines) + (b"\n" if draw.random() < 0.5 or lines[-1] in (b"", b"   ") else b""))

    assert [record["step"] for record in read_records(str(tmp_path)).records] == list(range(1, 21))
    warning = keep_records(str(tmp_path), 15)
    assert path.read_bytes() == b"".join(line + b"\n" for line in good[:15])
    aside = (tmp_path / "metrics.unreadable").read_bytes()
    assert sorted(aside[:-1].split(b"\n")) == sorted(bad)
    counted = "a line that no run wrote whole; it is" if len(bad) == 1 else f"{len(bad)} lines that no run wrote whole"
    assert f"metrics.jsonl had {counted}" in warning
    assert keep_records(str(tmp_path), 15) == ""
    append_record(str(tmp_path), 16, {"train/loss": 0.5})
    assert read_records(str(tmp_path)).records[-1] == {"step": 16, "train/loss": 0.5}


def test_a_whole_last_record_without_its_end_is_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}')
    assert keep_records(str(tmp_path), 2) == ""
    append_record(str(tmp_path), 3, {})
    assert [record["step"] for record in read_records(str(tmp_path)).records] == [1, 2, 3]


def test_a_folder_without_records_has_none(tmp_path: Path) -> None:
    assert read_records(str(tmp_path)) == ([], [], [])


def test_a_kill_leaves_at_most_one_torn_line_the_last(tmp_path: Path) -> None:
    """A process appends and resumes without end, and is killed at random moments."""
    program = (
        "import sys; from dlrm_torchrec.train.output.records import *\n"
        "folder, step = sys.argv[1], 0\n"
        "keep_records(folder, 20)\n"
        "while True:\n"
        "    step += 1; append_record(folder, step, {'x' * 3000: 1.5})\n"
        "    if step == 20: print(flush=True)\n"
        "    if step % 50 == 0: keep_records(folder, 20)\n"
    )
    draw = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(draw.random() / 5)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = read_records(str(tmp_path))
        assert len(found.records) >= 20
        assert len(found.unreadable) <= 1
        if found.unreadable:
            assert (tmp_path / "metrics.jsonl").read_bytes().endswith(found.unreadable[0])
