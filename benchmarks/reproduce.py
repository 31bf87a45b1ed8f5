"""Run rows of RESULTS.md again and print what was published beside what comes out now: `make reproduce`.

    python benchmarks/reproduce.py                       # all rows whose numbers this program can read: some hours
    python benchmarks/reproduce.py --minutes 20          # the cheapest of them: make reproduce-quick
    python benchmarks/reproduce.py --rows "train_fm"     # the rows that begin so

A row is run by the command that stands in it, with seed 0 where several seeds are published, in a folder of its own. It
is within if its number lies in the published range, or within two published standard deviations. A speed is a ratio on
the processor that its row names; on another one it may well differ. Other rows are listed with the reason why not.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
MINUS = "\N{MINUS SIGN}"
NUMBER = rf"[+{MINUS}-]?(?:\d{{1,3}}(?:,\d{{3}})+|\d*\.?\d+)(?:e[{MINUS}-]?\d+)?"
SPREAD = re.compile(rf"({NUMBER})(?: ± ({NUMBER})|[a-z%/ ]{{0,20}}\(({NUMBER}) to ({NUMBER}))?")
COMMAND = re.compile(r"`((?:\w+=\w+ )*(?:python|torchrun|torchx|make|pytest|dlrm-recipes)[\d.]* [^`]+)`")
TIMEOUT_S = 3600


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of RESULTS.md."""

    what: str
    reached: str
    says: str  # the cell with its command
    command: str  # with seed 0; empty if it names none


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number of a row, and the range that it had over seeds or rounds; the range is None if none is published."""

    value: float
    between: tuple[float, float] | None
    step: float  # of its last digit

    def verdict(self, now: float) -> str:
        low, high = self.between or (self.value, self.value)
        if low - self.step / 2 <= now <= high + self.step / 2:
            return "within"
        return "outside" if self.between else f"{now - self.value:+.2g}"


@dataclass(frozen=True, kw_only=True)
class Check:
    """How to run a row again, and which of its numbers comes out."""

    row: str  # how the row begins
    minutes: float  # on two idle cores
    read: Callable[[str], float] | None = (
        None  # the number in what the command prints; None: that it ends without fault
    )
    after: str = ""  # the text of the row before the number
    number: int = 0  # how many other numbers stand between
    command: str = ""  # in place of the row's own, which is about several runs


def metrics(output: str) -> dict[str, float]:
    """The last line of a recipe."""
    found: dict[str, float] = json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))
    return found


def gain(output: str) -> float:
    """The share of the best possible gain over AUC 0.5, in percent."""
    found = metrics(output)
    return 100 * (found["val/auc"] - 0.5) / (found["teacher/auc"] - 0.5)


def metric(name: str) -> Callable[[str], float]:
    return lambda output: metrics(output)[name]


def printed(pattern: str) -> Callable[[str], float]:
    """The first number that a command prints where ``pattern`` has its group."""

    def read(output: str) -> float:
        found = re.search(pattern, output, re.MULTILINE)
        if found is None:
            raise ValueError(f"output must have a line like {pattern!r}: got {output[-300:]!r}; correct the check")
        return number(found[1])

    return read


ROWWISE = r"-like, rowwise_adagrad(?:.*\n)+?  "
INT8 = r"int8 tables \+ int8 MLP \|.*"
OTHERS = "`train_fm`; `train_deepfm`; `train_dlrm --interaction cat`; `train_rmc` demo"
CENSUS_OTHERS = "`train_fm`; `train_deepfm`; `train_dlrm --interaction cat` census"
DEMO = "torchrun --standalone --nproc_per_node 2 recipes/train_dlrm.py"  # what `make train` runs
CHECKS = (
    Check(row="bytes of vectors that a rank sends", minutes=0.3, read=printed(r"^vectors.*mean ([\d,]+)")),
    Check(row="bytes on the wire: mult", minutes=0.5),
    Check(row="planner dry run", minutes=1, read=printed(r"slowest ([\d.]+) ms"), after="slowest rank"),
    Check(row="planned milliseconds of MLPerf's tables", minutes=0.5, read=printed(r"^2x8:h100 .* ([\d.]+) +[\d,]+$")),
    Check(row="number of lookups that read rows of other ids", minutes=1, read=printed(r"^ .* ([\d.]+)$")),
    Check(row="operators of a step on the branches", minutes=1),
    Check(row="`train_dlrm` demo, validation AUC", minutes=1, read=gain, command=DEMO),
    Check(row="`train_logistic` demo", minutes=1, read=gain),
    Check(row=OTHERS, minutes=1, read=gain),
    Check(row=OTHERS, number=1, minutes=1.5, read=gain, command="python recipes/train_deepfm.py"),
    Check(row=OTHERS, number=2, minutes=1, read=gain, command="python recipes/train_dlrm.py --interaction cat"),
    Check(row="`train_hstu` demo", minutes=1.5, read=gain),
    Check(row="`train_hstu_next_item` demo", minutes=1, read=metric("val/hr@10")),
    Check(row="`train_hstu_daily` demo", minutes=1, read=metric("val/auc")),
    Check(row="`train_mf` demo", minutes=1.5, read=metric("val/hr@10")),
    Check(row="`train_neumf` demo", minutes=2, read=metric("val/hr@10")),
    Check(row="`train_dcnv2` demo", minutes=2, read=gain),
    Check(row=OTHERS, number=3, minutes=3, read=gain, command="python recipes/train_rmc.py"),
    Check(row="`train_dlrm` census", minutes=1, read=metric("test/auc")),
    Check(row=CENSUS_OTHERS, minutes=1, read=metric("test/auc")),
    Check(row="rows that other rows of a batch move", minutes=1),
    Check(row="a step of `train_dlrm` without further options", minutes=3, read=printed(r"bare loop: median ([\d.]+)")),
    Check(row="demo with quantised", minutes=6, read=printed(r"^fp16 .* ([\d.]+) +[\d.]+$"), after="fp16"),
    Check(row="exact int64 product", minutes=1, read=printed(r"^\| 2 \| int64_matmul \|.* ([\d.]+) \|$")),
    Check(row="a step of `train_dlrm` criteo-kaggle", minutes=10, read=printed(r"([\d.]+)% of it waiting")),
    Check(row="initial weights of 4 GB", minutes=3, number=1, read=printed(r"threads, ([\d.]+) of the")),
    Check(row="saving 2 GB of tables", minutes=4, read=printed(r"^peak memory of saving over training: ([\d.]+)")),
    Check(row="loading and verifying", minutes=4, read=printed(r"^peak memory of loading over training: ([\d.]+)")),
    Check(row="ratio of planned milliseconds", minutes=4, read=printed(r"^row_wise over table_wise: .*? (\d\.\d+);")),
    Check(row="`compare_embeddings` demo", minutes=15, read=printed(r'"qr-mult[^"]*": ([\d.]+)')),
    Check(row="step with QR tables", minutes=15, read=printed(rf"^kaggle{ROWWISE}mult .* ([\d.]+) of plain")),
    Check(row="DLRM 26 x 40,000 x 64", minutes=15, number=1, read=printed(rf"^\| dlrm \| 64 \| {INT8} ([\d.]+) \|$")),
    Check(row="`train_dlrm`, [half a demo]", minutes=15, read=printed(r"^fitted to the bytes of 4 .* mean ([\d.]+)$")),
    Check(row="training, [kaggle-like]", minutes=25, read=printed(r"^speed-up: .*kaggle-like sgd ([\d.]+)")),
    Check(row="training, kaggle-like, row-wise", minutes=25, read=printed(r"kaggle-like rowwise_adagrad ([\d.]+)")),
    Check(row="training, [rm-like]", minutes=25, read=printed(r"^speed-up: .*rm-like sgd ([\d.]+)")),
    Check(row="training, rm-like, row-wise", minutes=25, read=printed(r"rm-like rowwise_adagrad ([\d.]+)")),
    Check(row="matrix factorisation of made-up", minutes=40, read=printed(r"^ +256 rows +hash +([\d.]+)")),
)


def number(text: str) -> float:
    return float(text.replace(",", "").replace(MINUS, "-"))


def rows_of(results: str) -> Iterator[Row]:
    """The rows of the tables with a column of commands; `likewise` means the command of the row above."""
    command = ""
    for line in results.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if not line.startswith("| ") or len(cells) != 5 or cells[0] in ("what", "name"):
            continue
        found = COMMAND.search(cells[-1])
        if found:
            command = re.sub(r"--seed N\b", "--seed 0", found[1])
        yield Row(what=cells[0], reached=cells[1], says=cells[-1], command=command)


def published(cell: str, after: str, place: int) -> Published:
    """The number at ``place`` behind the text ``after``. Raises ValueError if the row has none."""
    found = list(SPREAD.finditer(cell, cell.index(after) + len(after))) if after in cell else []
    if len(found) <= place:
        raise ValueError(f"row must have a number {place} after {after!r}: got {cell!r}; correct the check")
    value, deviation, low, high = found[place].groups()
    digits = value.partition(".")[2]
    between = (number(low), number(high)) if low else None
    if deviation:
        between = (number(value) - 2 * number(deviation), number(value) + 2 * number(deviation))
    return Published(value=number(value), between=between, step=10.0 ** -len(digits))


def why_not(row: Row) -> str:
    """Why no check runs a row."""
    text = f"{row.what} {row.says}"
    if any(word in text for word in ("census", "FOLDER", "PACKAGE", "practice", "quantize_dlrm", "inference_attacks")):
        return "needs data, a package or a run of yours"
    if re.search(r"\bgpu|GPU", text):
        return "needs a GPU, or its libraries"
    return "prints a table: compare it yourself"


def processor() -> str:
    """This machine's processor, as the rows name theirs."""
    told = dict(re.findall(r"^(vendor_id|cpu family|model)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    return f"{told.get('vendor_id', 'unknown')}, family {told.get('cpu family')}, model {told.get('model')}"


def workshop(folder: Path) -> None:
    """A folder that looks like the project, without its runs."""
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".git"):
            (folder / path.name).symlink_to(path)


def run(command: str, folder: Path) -> tuple[int, str]:
    """The exit status of a command, and what it printed."""
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": paths}
    environment.pop("OMP_NUM_THREADS", None)  # a row says so where it wants one thread
    try:
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, f"it takes more than {TIMEOUT_S} s"
    return done.returncode, done.stdout


def reproduce(check: Check, row: Row, outputs: dict[str, tuple[int, str]]) -> tuple[str, str]:
    """The verdict on a row, and its numbers, published and now; ``outputs`` are those of commands that were run."""
    command = check.command or row.command
    if " census" in command and not (ROOT / "prepared/census").exists():
        return "not run", "needs prepared/census"
    if command not in outputs:
        with tempfile.TemporaryDirectory() as name:
            workshop(Path(name))
            outputs[command] = run(command, Path(name))
    status, output = outputs[command]
    if status:
        return "failed", f"{command}: {' '.join(output[-400:].split())}"
    if check.read is None:
        return "within", "ends without fault"
    said = published(row.reached, check.after, check.number)
    try:
        now = check.read(output)
    except ValueError as error:
        return "failed", str(error)
    low, high = said.between or ("", "")
    spread = f" ({low:g} to {high:g})" if said.between else ""
    return said.verdict(now), f"{said.value:g}{spread}, now {now:.6g}"


@dataclass(frozen=True)
class Config:
    minutes: float = 0.0  # Run the cheapest rows that take so long together on two idle cores; 0 means all.
    rows: str = ""  # Run only rows that have this text; empty means all.


def main(config: Config) -> int:
    rows = list(rows_of((ROOT / "RESULTS.md").read_text()))
    print(f"processor: {processor()}; {os.cpu_count()} cores", flush=True)
    outputs: dict[str, tuple[int, str]] = {}
    left, verdicts, skipped = config.minutes or float("inf"), list[str](), list[tuple[str, str]]()
    for check in sorted(CHECKS, key=lambda check: check.minutes):
        row = next(row for row in rows if row.what.startswith(check.row))
        cost = 0.0 if (check.command or row.command) in outputs else check.minutes
        if config.rows not in row.what:
            continue
        if cost > left:
            skipped.append((row.what, f"takes {cost:g} minutes more"))
            continue
        left -= cost
        start = time.monotonic()
        verdict, numbers = reproduce(check, row, outputs)
        verdicts.append(verdict)
        took = f"{(time.monotonic() - start) / 60:.1f} min"
        print(f"{verdict:<8}  {numbers:<44}  {took:>8}  {check.command or row.what}", flush=True)
    checked = tuple(check.row for check in CHECKS)
    skipped += [
        (row.what, why_not(row)) for row in rows if not row.what.startswith(checked) and config.rows in row.what
    ]
    for what, reason in skipped:
        print(f"not run   {reason:<54}  {what}")
    print(f"{len(verdicts)} run, {verdicts.count('within')} within, {len(skipped)} rows not run")
    return int(any(verdict in ("failed", "outside") for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
