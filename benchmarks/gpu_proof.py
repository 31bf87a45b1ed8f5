"""Shows on one GPU, within eight minutes, what no CPU can show: correctness, speed and memory of the recipes.

    python benchmarks/gpu_proof.py                                # every part, about eight minutes
    python benchmarks/gpu_proof.py --only losses waits --seconds 120
    python benchmarks/gpu_proof.py --device cpu --toy             # a dry run of every part

It needs Python, torch, torchrec, fbgemm_gpu for CUDA, and this checkout; docs/gpu.md says how to read it. Each result
is a line of JSON in the output and in ``--output``, written as soon as it is known, and a table follows at the end. The
exit code is 0 if all of correctness was shown, 1 if some of it failed, and 3 if none failed but some was skipped. Speed
and memory do not change it.

Parts run in a process of their own. When one ends it, or takes too long, another goes on with the next part.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).parents[1]


class Part(NamedTuple):
    seconds: int  # that it should need on a GPU
    kind: str = "correctness"  # of its main rows, and its folder


PARTS = {  # in order of worth
    "machine": Part(15),
    "losses": Part(60),
    "precision": Part(15),
    "demo": Part(30),
    "waits": Part(15),
    "histories": Part(20),
    "throughput": Part(75, "speed"),
    "step_times": Part(45, "speed"),
    "launches": Part(25, "speed"),
    "host_memory": Part(15),
    "node_local": Part(10),
    "comms": Part(5),
    "planned": Part(30, "speed"),
    "evaluation": Part(15),
    "int64": Part(5),
    "reading": Part(40, "speed"),
    "compiled": Part(60),
}
START_S, END_S = 120, 5  # at most, for the imports of a new process, and for its end
FAILED, NOT_ALL_SHOWN = 1, 3


class Worker:
    """A process that runs one part after the other."""

    def __init__(self, device: str, log: IO[bytes], *, toy: bool) -> None:
        reading, writing = os.pipe()
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "benchmarks.gpu", "--device", device, "--messages", str(writing)]
        self._process = subprocess.Popen(
            [*command, *(["--toy"] if toy else [])],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[writing],
        )
        os.close(writing)
        self._pipe, self._left = reading, b""
        self.ready = False

    def start(self) -> dict[str, Any]:
        """The facts about the process, when its imports are done."""
        facts: dict[str, Any] = self.message(time.monotonic() + START_S)["facts"]
        self.ready = True
        return facts

    def begin(self, kind: str, part: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {part}\n".encode())
        self._process.stdin.flush()

    def message(self, until: float) -> dict[str, Any]:
        """The next message; raises EOFError when the process has ended, and TimeoutError at time ``until``."""
        while b"\n" not in self._left:
            if not select.select([self._pipe], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError
            read = os.read(self._pipe, 1 << 16)
            if not read:
                raise EOFError
            self._left += read
        line, _, self._left = self._left.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def end(self) -> int:
        """The exit code of the process, which ends when it gets no more parts, or is ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            os.close(self._pipe)


class Results:
    """The rows of this run, which go to the output and to a file at once."""

    def __init__(self, file: IO[str]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._facts: dict[str, Any] = {}
        self._file = file

    def begin(self, facts: dict[str, Any], device: str) -> None:
        """Every row names device, driver and versions; what is missing is said at once."""
        if not self._facts:
            print(f"missing packages: {', '.join(facts['missing']) or 'none'}. {facts['error']}".rstrip(), flush=True)
            self._facts = {"device": facts["device"] or device, "driver": driver(), "versions": facts["versions"]}

    def add(self, row: dict[str, Any]) -> None:
        empty = {"name": "", "kind": "", "value": None, "unit": "", "limit": "", "ok": None, "note": "", "seconds": 0.0}
        row = {**empty, **row, **self._facts}
        self.rows.append(row)
        for stream in (sys.stdout, self._file):
            print(json.dumps(row), file=stream, flush=True)

    def exit_code(self) -> int:
        shown = [row["ok"] for row in self.rows if row["kind"] == "correctness"]
        if False in shown:
            return FAILED
        return NOT_ALL_SHOWN if None in shown or not shown else 0

    def table(self) -> str:
        lines = [f"{'':4} {'kind':<12} {'what':<58} {'value':>12} {'unit':<22} {'limit':<18} {'s':>6}"]
        for row in self.rows:
            verdict = {True: "ok", False: "FAIL", None: "-"}[row["ok"]]
            value = f"{row['value']:.4g}" if isinstance(row["value"], int | float) else ""
            note = row["note"].strip().splitlines()[-1][:100] if row["note"] else ""
            lines.append(
                f"{verdict:4} {row['kind']:<12} {row['name']:<58} {value:>12} {row['unit']:<22} {row['limit']:<18} "
                f"{row['seconds']:>6.1f} {note}".rstrip()
            )
        return "\n".join(lines)


def run(args: argparse.Namespace, results: Results, log: IO[bytes]) -> None:
    """All parts, in turns, until the time is over."""
    end = time.monotonic() + args.seconds
    worker: Worker | None = None
    for part in args.only or PARTS:
        seconds, kind = PARTS[part]
        left = end - time.monotonic()
        if left < (1 if args.toy else seconds):
            note = f"skipped: it needs {seconds} s, and {max(0, left):.0f} of {args.seconds} were left"
            results.add({"name": part, "kind": kind, "note": note})
            continue
        worker = worker or Worker(args.device, log, toy=args.toy)
        try:
            if not worker.ready:
                results.begin(worker.start(), args.device)
            worker.begin(kind, part)
            until = time.monotonic() + (left if args.toy else min(left, 3 * seconds + 30))
            while "end" not in (message := worker.message(until)):
                results.add(message)
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            code, ready, worker = worker.end(), worker.ready, None
            what = "took too long" if isinstance(error, TimeoutError) else f"ended its process with code {code}"
            results.add({"name": part, "kind": "correctness", "ok": False, "note": f"{what}\n{tail(log)}".strip()})
            if not ready:
                return  # nor will another process start
    if worker:
        worker.end()


def driver() -> str:
    """The version of NVIDIA's driver, if there is one."""
    path = Path("/proc/driver/nvidia/version")
    if path.exists():
        found = re.search(r"Module.*?(\d+\.[\d.]+)", path.read_text())
        return found[1] if found else ""
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def tail(log: IO[bytes]) -> str:
    log.flush()
    return Path(log.name).read_text(errors="replace")[-1500:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="the parts to run; all of them by default")
    parser.add_argument("--seconds", type=int, default=480, help="time for all parts; what does not fit is skipped")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="tiny shapes, whose speed and memory are not judged")
    parser.add_argument("--output", default="runs/gpu_proof.jsonl", help="the file of the results")
    args = parser.parse_args()
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    with open(args.output, "w") as file, tempfile.NamedTemporaryFile(suffix=".log") as log:
        results = Results(file)
        run(args, results, log)
    print(results.table())
    counts = {verdict: [row["ok"] for row in results.rows].count(verdict) for verdict in (True, False, None)}
    print(f"{counts[True]} as they should be, {counts[False]} not, {counts[None]} not judged or skipped; {args.output}")
    sys.exit(results.exit_code())


if __name__ == "__main__":
    main()
