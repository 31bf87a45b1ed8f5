"""How far a run is: share, remaining time, and lines where nothing else is said for long."""

from __future__ import annotations

import random

import pytest

from dlrm_torchrec.terminal.words import about, duration
from dlrm_torchrec.train.output.pace import Pace

UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}


def seconds(text: str) -> float:
    words = text.removeprefix("about ").split()
    return sum(float(count) * UNITS[unit] for count, unit in zip(words[::2], words[1::2], strict=True))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("dlrm_torchrec.train.output.pace.time.monotonic", lambda: now[0])
    return now


def test_a_line_has_step_total_share_and_remaining_time(clock: list[float]) -> None:
    run = Pace(0, 1200)
    clock[0] += 60  # the first step compiles, so it says nothing about the others
    run.advance(1)
    assert run.place(1) == "step 1 of 1,200, 0 %"
    clock[0] += 8
    assert run.place(50) == "step 50 of 1,200, 4 %, about 3 min left"
    assert run.place(1200) == "step 1,200 of 1,200, 100 %"


def test_a_resumed_run_is_judged_by_its_own_steps(clock: list[float]) -> None:
    run = Pace(1000, 1200)
    assert run.place(1000) == "step 1,000 of 1,200, 83 %"
    run.advance(1001)
    clock[0] += 99
    assert run.place(1100) == "step 1,100 of 1,200, 91 %, about 2 min left"


def test_slow_steps_are_not_silent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    run = Pace(0, 1000)
    for step in range(1, 11):
        clock[0] += 12
        run.advance(step)
    assert capsys.readouterr().err.splitlines() == [
        "step 1 of 1,000, 0 %; the first step took 12 s",
        "step 4 of 1,000, 0 %, about 3 h 20 min left",
        "step 7 of 1,000, 0 %, about 3 h 20 min left",
        "step 10 of 1,000, 1 %, about 3 h 20 min left",
    ]


def test_quick_steps_say_nothing_of_their_own(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    run = Pace(0, 1000)
    for step in range(1, 1000):
        clock[0] += 0.1
        run.advance(step)
        if step % 100 == 0:
            run.say(run.place(step))
    assert len(capsys.readouterr().err.splitlines()) == 9


@pytest.mark.parametrize("seed", range(4))
def test_durations_in_words_are_close(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(500):
        time_s = 10 ** draw.uniform(-1, 6)
        assert seconds(duration(time_s)) == pytest.approx(time_s, rel=0.05, abs=0.06), time_s
        assert seconds(about(time_s)) == pytest.approx(time_s, rel=0.35, abs=1), time_s
        assert len(about(time_s).split()) <= 5
