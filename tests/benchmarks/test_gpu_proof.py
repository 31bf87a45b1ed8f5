"""The proof for one GPU: a dry run of its parts on CPU, and what it makes of parts that fail, end or hang."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.recipe import ROOT

# parts that take a CPU longer than the others
LONG = ["precision", "demo", "histories", "throughput", "step_times", "launches", "reading", "compiled"]


def proof(
    folder: Path, *options: str, script: Path = ROOT / "benchmarks/gpu_proof.py", path: str = "", toy: bool = True
) -> Any:
    """The process of a proof, and its rows."""
    output = folder / "rows.jsonl"
    done = subprocess.run(
        [sys.executable, str(script), "--device=cpu", *(["--toy"] if toy else []), f"--output={output}", *options],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    return done, [json.loads(line) for line in output.read_text().splitlines()]


def parts() -> list[str]:
    source = (ROOT / "benchmarks/gpu_proof.py").read_text()
    return re.findall(r'^    "(\w+)": Part\(', source, re.MULTILINE)


def check(done: subprocess.CompletedProcess[str], rows: list[dict[str, Any]]) -> None:
    assert [row for row in rows if row["ok"] is False] == [], done.stderr
    assert done.returncode == 3, done.stderr  # a CPU cannot show all
    assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] == rows
    table = done.stdout.splitlines()[-len(rows) - 1 : -1]
    assert [row["name"] for row, line in zip(rows, table, strict=True) if row["name"] not in line] == []
    for row in rows:
        assert row["kind"] in ("correctness", "speed", "memory")
        assert row["device"] == "cpu"
        assert row["versions"]["torchrec"]
        assert row["value"] is not None or row["note"].startswith("skipped: ")


@pytest.mark.timeout(900)  # twenty seconds of one core, where there is one
def test_a_dry_run_on_cpu_also_without_tyro(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tyro'] = None\n")
    files = {path.stem for path in (ROOT / "benchmarks/gpu").glob("*/*.py")}
    assert set(parts()) == files
    done, rows = proof(tmp_path, "--only", *(part for part in parts() if part not in LONG), path=str(tmp_path))
    assert done.stdout.startswith("missing packages: tyro.")
    check(done, rows)
    assert [row["name"] for row in rows if row["value"] is None] == ["losses: mult, adam"]
    names = " ".join(row["name"] for row in rows)
    shown = ["path", "feature_generation", "mixed dims", "fused_uvm_caching", "node-local tables", "quantised comms"]
    shown += ["no wait", "AUC", "planned over measured", "int64 product", "bytes of moments"]
    assert [text for text in shown if text not in names] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_of_the_longer_parts(tmp_path: Path) -> None:
    _, rows = proof(tmp_path, "--only", *LONG)
    assert [row for row in rows if row["ok"] is False or row["value"] is None] == []
    names = " ".join(row["name"] for row in rows)
    shown = ["fp16 tables", "bf16", "resumed run", "MLPerf", "RMC2", "over bare loop", "mult over plain", "launches"]
    shown += ["reader over trainer", "compiled dense parts", "HSTU in bf16", "HSTU's demo"]
    assert [text for text in shown if text not in names] == []


WRONG = """
    import torch
    from benchmarks.gpu import training
    from benchmarks.gpu.correctness import losses
    from benchmarks.gpu.proof import Proof

    step, place = training.Trainer.step, ""

    def wrong(self, batch):
        before = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        loss = step(self, batch)
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if place in name:
                    weight.lerp_(before[name], 0.05)
        return loss

    training.Trainer.step = wrong
    losses.PARTITIONS = losses.SHARDINGS = {}
    losses.STORAGES = {name: losses.STORAGES[name] for name in ("plain", "mult", "path")}
    for place in ("embedding_bags", "over_arch"):
        losses.prove(Proof(torch.device("cpu"), True, lambda row: print(row["name"].partition(":")[0], row["ok"])))
"""


@pytest.mark.timeout(900)
def test_steps_that_are_a_twentieth_too_short_are_found(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(textwrap.dedent(WRONG))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "wrong.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    found = [line for line in done.stdout.splitlines() if line.startswith("weights")]
    assert len(found) >= 8, done.stderr
    assert set(found) == {"weights False"}


WORKER = """
    import argparse, json, os, sys, time
    parser = argparse.ArgumentParser()
    parser.add_argument("--device")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--messages", type=int)
    pipe = os.fdopen(parser.parse_args().messages, "w", buffering=1)
    tell = lambda message: print(json.dumps(message), file=pipe)
    tell({"facts": {"missing": [], "versions": {}, "device": "", "error": ""}})
    for line in sys.stdin:
        kind, part = line.split()
        if part == "waits":
            print("a device-side assert", file=sys.stderr, flush=True)
            os._exit(7)
        if part == "comms":
            time.sleep(60)
        tell({"name": part, "kind": kind, "value": os.getpid(), "ok": part not in WRONG})
        tell({"end": part})
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The proof with a worker that fails in known ways."""
    (tmp_path / "benchmarks/gpu").mkdir(parents=True)
    return Path(shutil.copy(ROOT / "benchmarks/gpu_proof.py", tmp_path / "benchmarks"))


def fake(script: Path, *options: str, wrong: str = "", toy: bool = True) -> Any:
    worker = textwrap.dedent(WORKER).replace("WRONG", repr(wrong.split()))
    (script.parent / "gpu/__main__.py").write_text(worker)
    return proof(script.parent, *options, script=script, toy=toy)


def test_a_part_that_ends_its_process_does_not_take_the_rest_along(script: Path) -> None:
    done, rows = fake(script, "--only", "losses", "waits", "int64", "demo")
    assert [(row["name"], row["ok"]) for row in rows] == [
        ("losses", True),
        ("waits", False),
        ("int64", True),
        ("demo", True),
    ]
    assert "code 7" in rows[1]["note"]
    assert "a device-side assert" in rows[1]["note"]
    first, _, third, fourth = (row["value"] for row in rows)
    assert first != third == fourth
    assert done.returncode == 1


def test_a_part_that_hangs_is_ended_and_nothing_runs_past_the_time(script: Path) -> None:
    done, rows = fake(script, "--only", "losses", "comms", "int64", "--seconds", "3")
    assert [(row["name"], row["ok"]) for row in rows[:2]] == [("losses", True), ("comms", False)]
    assert "took too long" in rows[1]["note"]
    assert rows[2]["note"].startswith("skipped")
    assert done.returncode == 1


def test_what_does_not_fit_the_time_is_skipped(script: Path) -> None:
    done, rows = fake(script, "--only", "losses", "int64", "--seconds", "20", toy=False)
    assert [(row["name"], row["ok"]) for row in rows] == [("losses", None), ("int64", True)]
    assert rows[0]["note"].startswith("skipped: it needs 60 s")
    assert done.returncode == 3


@pytest.mark.parametrize(("wrong", "code"), [("", 0), ("throughput", 0), ("losses", 1)])
def test_correctness_alone_decides_the_exit_code(script: Path, wrong: str, code: int) -> None:
    done, rows = fake(script, "--only", "losses", "throughput", wrong=wrong)
    assert done.returncode == code
    assert [row["kind"] for row in rows] == ["correctness", "speed"]
