"""How programs end that cannot go on, alone and as ranks of torchrun: what is printed, once, and what is recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import DistNetworkError, TCPStore
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.terminal.failure import failure_of, run
from dlrm_torchrec.terminal.words import about
from tests.recipe import ROOT
from tests.scripts import run_python

FAILING = Path(__file__).with_name("failing.py")
MISTAKE = "lr must be positive: got -1.0; raise it"


def end(attempt: Path, *words: str) -> tuple[list[str], list[int], list[ProcessFailure]]:
    """What each rank wrote to standard error, its exit code, and what torchrun makes of its error file.

    As torchrun does, the first end with an error brings SIGTERM to the others.
    """
    ways = [word for word in words if not word.startswith("--")]
    ranks = []
    for rank in range(len(ways)):
        (attempt / str(rank)).mkdir(parents=True)
        place: dict[str, object] = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": len(ways),
            "LOCAL_WORLD_SIZE": len(ways),
        }
        place["TORCHELASTIC_ERROR_FILE"], place["PYTHONPATH"] = attempt / str(rank) / "error.json", ROOT
        environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
        ranks.append(subprocess.Popen([sys.executable, str(FAILING), *words], env=environment, stderr=subprocess.PIPE))
    while not any(each.poll() for each in ranks) and any(each.poll() is None for each in ranks):
        time.sleep(0.02)
    for each in ranks:
        each.terminate()
    said = [each.communicate(timeout=60)[1].decode() for each in ranks]
    failures = [
        ProcessFailure(rank, each.pid, each.returncode, str(attempt / str(rank) / "error.json"))
        for rank, each in enumerate(ranks)
    ]
    return said, [each.returncode for each in ranks], failures


def alone(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(FAILING), *words], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("way", "sentence", "code"),
    [
        ("mistake", f"error: {MISTAKE}\n", 1),
        ("disk", "error: [Errno 28] No space left on device: 'runs/a'\n", 1),
        ("pipe", "error: [Errno 32] Broken pipe\n", 1),  # of the terminal, not of another rank
        ("interrupted", "error: interrupted\n", 130),
        ("fine", "", 0),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(way: str, sentence: str, code: int) -> None:
    done = alone(way)
    assert (done.stderr, done.returncode) == (sentence, code)
    assert done.stdout == ("" if code else "fine\n")


def test_debug_adds_the_call_stack() -> None:
    done = alone("mistake", "--debug")
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert "raise ValueError(" in done.stderr
    assert done.stderr.endswith(f"\nerror: {MISTAKE}\n")


def test_a_bug_in_a_file_of_the_user_is_placed_there() -> None:
    done = alone("bug")
    assert done.returncode == 1
    assert 'return str(int("x"))' in done.stderr
    (line,) = [number for number, text in enumerate(FAILING.read_text().splitlines(), 1) if 'int("x")' in text]
    assert done.stderr.endswith(f"This is a bug in {FAILING}, line {line}, or in what it calls.\n")


def test_a_bug_of_ours_is_no_mistake_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    """The file that calls ``run`` is none of the frames; those of the library and of Python remain."""
    with pytest.raises(SystemExit) as ended:
        run(about, float("inf"))
    assert ended.value.code == 1
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith("This is a bug of dlrm_torchrec or of a library, not a mistake of yours.\n")


def test_control_characters_are_shown_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise ValueError("name must be printable: got \x1b]0;title\x07; rename it")

    with pytest.raises(SystemExit):
        run(refuse)
    assert capsys.readouterr().err == "error: name must be printable: got \\x1b]0;title\\x07; rename it\n"


def test_a_library_that_cannot_be_loaded_points_to_doctor(tmp_path: Path) -> None:
    """An import, too, which comes before ``run``; ranks speak once."""
    sentence = (
        "the installed packages must be importable: got libcuda.so.99: cannot open shared object file: No such file or "
        "directory; run `dlrm-recipes doctor`, which says what is broken and how to mend it"
    )
    done = alone("imports")
    assert (done.stderr, done.returncode) == (f"error: {sentence}\n", 1)
    said, codes, failures = end(tmp_path, "imports", "imports")
    assert sorted(said) == ["", f"error: {sentence}\n"]
    assert codes == [1, 1]
    assert [each.error_file_data["message"]["message"] for each in failures] == [sentence] * 2
    undefined = failure_of(ImportError("a.so: undefined symbol: _ZN3c10"), rank=0)
    missing = failure_of(ModuleNotFoundError("No module named 'torchrec'", name="torchrec"), rank=0)
    assert all("dlrm-recipes doctor" in each.sentence and not each.stack for each in (undefined, missing))
    assert "This is a bug" in failure_of(ImportError("No module named 'mine'"), rank=0).sentence


def test_a_function_that_is_called_still_raises() -> None:
    with pytest.raises(ValueError, match="preset must be one of demo: got 'demi'; name one of them, or none"):
        parse({"demo": 1}, ["demi"])


def test_ranks_that_fail_alike_speak_once(tmp_path: Path) -> None:
    said, codes, failures = end(tmp_path, "mistake", "mistake", "mistake")
    assert sorted(said) == ["", "", f"error: {MISTAKE}\n"]
    assert codes == [1, 1, 1]
    assert [each.error_file_data["message"]["message"] for each in failures] == [MISTAKE] * 3
    assert all("py_callstack" not in each.error_file_data["message"]["extraInfo"] for each in failures)


def test_a_rank_that_fails_alone_is_named_and_those_that_lost_it_are_silent(tmp_path: Path) -> None:
    said, codes, failures = end(tmp_path, "lost", "mistake", "waits")
    assert said == ["", f"error of rank 1: {MISTAKE}\n", ""]
    assert codes[:2] == [1, 1]
    first = min(failures[:2], key=lambda each: each.timestamp)  # torchrun's root cause
    assert first.error_file_data["message"]["message"] == MISTAKE


def test_some_ranks_that_fail_alike_are_named(tmp_path: Path) -> None:
    said, _, _ = end(tmp_path, "mistake", "disk", "mistake")
    assert sorted(filter(None, said)) == [
        "error of rank 1: [Errno 28] No space left on device: 'runs/a'\n",
        f"error of ranks 0, 2: {MISTAKE}\n",
    ]


def test_a_bug_of_all_ranks_shows_one_call_stack(tmp_path: Path) -> None:
    said, _, failures = end(tmp_path, "bug", "bug")
    assert sorted(text.count("Traceback") for text in said) == [0, 1]
    assert all("Traceback" in each.error_file_data["message"]["extraInfo"]["py_callstack"] for each in failures)


def test_ranks_that_lost_one_of_another_host_say_so_once(tmp_path: Path) -> None:
    said, _, _ = end(tmp_path, "lost", "lost")
    (text,) = filter(None, said)
    assert text.startswith("error of rank")
    assert "the connection to another rank must hold: got [enforce fail" in text
    assert "run the same command again to resume" in text


def test_a_rank_whose_torchrun_was_killed_has_lost_it() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = TCPStore("127.0.0.1", server.port, is_master=False)
    del server
    with pytest.raises(DistNetworkError) as raised:
        client.get("attempt")
    failure = failure_of(raised.value, rank=1)
    assert failure.lost
    assert failure.sentence.startswith("the connection to another rank must hold: got Failed to recv")
    assert failure.stack == ""


def test_a_wrong_command_line_is_refused_by_the_first_rank(tmp_path: Path) -> None:
    said, codes, failures = end(tmp_path, "fine", "fine", "--options")
    assert "no-such" in said[0]
    assert said[1] == ""
    assert codes[0] == 2
    assert "options must be as --help lists them" in failures[0].error_file_data["message"]["message"]


def test_an_error_file_that_is_not_torchruns_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ValueError(MISTAKE)

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "reply.json"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        run(refuse)
    assert ended.value.code == 1
    assert json.loads((tmp_path / "reply.json").read_text())["message"]["message"] == MISTAKE


def test_dlrm_recipes_run_adds_nothing_to_the_sentence(tmp_path: Path) -> None:
    torchrun = ["--standalone", "--nproc_per_node", "2", "--", "mistake", "waits"]
    done = run_python(["-m", "dlrm_torchrec.cli.main", "run", str(FAILING), *torchrun], tmp_path)
    assert (done.returncode, done.stderr) == (1, f"error of rank 0: {MISTAKE}\n")
