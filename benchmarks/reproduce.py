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


@dataclass(frozen=True)
class Metric:
    """A number that a recipe reports at its end."""

    name: str

    def __call__(self, output: str) -> float:
        found = metrics(output)
        if self.name not in found:
            raise ValueError(f"output must have {self.name}: got {', '.join(found)}; correct the check")
        return found[self.name]


@dataclass(frozen=True)
class Printed:
    """The first number that a command prints where ``pattern`` has its group."""

    pattern: str

    def __call__(self, output: str) -> float:
        found = re.search(self.pattern, output, re.MULTILINE)
        if found is None:
            raise ValueError(f"output must have a line like {self.pattern!r}: got {output[-300:]!r}; correct the check")
        return number(found[1])


def traffic(kind: str, place: int) -> str:
    """The pattern of a cell that benchmarks/memory_traffic.py prints for int8 rows."""
    return rf"^\| {re.escape(kind)} \| int8 \|(?: [\d.,]+ \|){{{place}}} ([\d.]+) \|"


def colocated(processes: str) -> str:
    """The pattern of RMC2's latency in float32, or of its core time if the processes share a core."""
    before = r" [^|]+ \|" * (1 if processes.endswith("2") else 2)
    return rf"^\| rmc2 \| fp32 \| {re.escape(processes)} \|{before} ([\d.]+) \("


def changed(name: str) -> Callable[[str], float]:
    """What quantising added to a metric."""
    return lambda output: metrics(output)[name] - metrics(output)[f"before/{name}"]


ROWWISE = r"-like, rowwise_adagrad(?:.*\n)+?  "
INT8 = r"int8 tables \+ int8 MLP \|.*"
ADDS = r"^multiply-adds of a sample\n(?:.*\n)+?"
OTHERS = "`train_fm`; `train_deepfm`; `train_dlrm --interaction cat`; `train_rmc` demo"
CENSUS_OTHERS = "`train_fm`; `train_deepfm`; `train_dlrm --interaction cat` census"
DEMO = "torchrun --standalone --nproc_per_node 2 recipes/train_dlrm.py"  # what `make train` runs
QUANTIZED = "python recipes/train_dlrm.py && python recipes/quantize_dlrm.py train_dlrm runs/train_dlrm/demo"
STALE = "`train_dlrm_daily` over thirty synthetic days"
CHECKS = (
    Check(row="multiply-adds of a sample", minutes=0.3, read=Printed(rf"{ADDS}FM(?: +[\d,]+){{2}} +([\d,]+)")),
    Check(row="sizes of RMC2; RMC3", minutes=0.3, read=Printed(r"^tables +1 +([\d.]+)")),
    Check(row="bytes of vectors that a rank sends", minutes=0.4, read=Printed(r"^vectors.*mean ([\d,]+)")),
    Check(row="planned milliseconds of MLPerf's tables", minutes=0.4, read=Printed(r"^2x8:h100 .* ([\d.]+) +[\d,]+$")),
    Check(row="bytes on the wire: mult", minutes=0.5),
    Check(row="a factorisation machine's pairs", minutes=0.5, read=Printed(r"^square of a sum: .* on n\^([\d.]+)$")),
    Check(row="number of lookups that read rows of other ids", minutes=1, read=Printed(r"^ .* ([\d.]+)$")),
    Check(row="operators of a step on the branches", minutes=1),
    Check(row="planner dry run", minutes=1, read=Printed(r"slowest ([\d.]+) ms"), after="slowest rank"),
    Check(
        row="the same for 50; 100; 1,000 tables",
        minutes=1,
        read=Printed(r"^50 .* rank ([\d.]+) ms"),
        after="slowest rank",
    ),
    Check(row="`train_dlrm` demo, validation AUC", minutes=1, read=gain, command=DEMO),
    Check(row="`train_dlrm` demo, calibration", minutes=1, read=Metric("val/calibration"), command=DEMO),
    Check(row="`train_logistic` demo", minutes=1, read=gain),
    Check(row=OTHERS, minutes=1, read=gain),
    Check(row=OTHERS, number=1, minutes=1.5, read=gain, command="python recipes/train_deepfm.py"),
    Check(row=OTHERS, number=2, minutes=1, read=gain, command="python recipes/train_dlrm.py --interaction cat"),
    Check(row="`train_hstu` demo", minutes=1.5, read=gain),
    Check(row="`train_hstu_next_item` demo", minutes=1, read=Metric("val/hr@10")),
    Check(row="`train_hstu_daily` demo", minutes=1, read=gain),
    Check(row="`quantize_dlrm`, int8 tables", minutes=1.5, read=changed("val/auc"), command=QUANTIZED),
    Check(row="`train_mf` demo", minutes=1.5, read=Metric("val/hr@10")),
    Check(row="`train_neumf` demo", minutes=2, read=Metric("val/hr@10")),
    Check(row="`train_dcnv2` demo", minutes=2, read=gain),
    Check(row=OTHERS, number=3, minutes=3, read=gain, command="python recipes/train_rmc.py"),
    Check(row="`train_dlrm` census", minutes=1, read=Metric("val/auc")),
    Check(row=CENSUS_OTHERS, minutes=1, read=Metric("val/auc")),
    Check(row="rows that other rows of a batch move", minutes=1),
    Check(row="exact int64 product", minutes=1, read=Printed(r"^\| (?!1 )\d+ \| int64_matmul \|.* ([\d.]+) \|$")),
    Check(
        row="FBGEMM's int8 layers", number=10, minutes=2, read=Printed(r"^\| rmc3 \| 64 \|(?: [\d.,]+ \|){2} ([\d.]+)")
    ),
    Check(row="DLRM's queries of 165 items", minutes=2, read=Printed(rf"^\| dlrm \| {INT8} ([\d.]+) \|$")),
    Check(row="bytes that memory moves for a sample", minutes=3, read=Printed(traffic("rmc1 | uniform", 4))),
    Check(
        row="the same with ids that are frequent by Zipf's law", minutes=3, read=Printed(traffic("rmc1 | frequent", 4))
    ),
    Check(row="time of RMC2's lookups in int8", minutes=3, read=Printed(traffic("rmc2 | uniform", 6))),
    Check(row="lookups of RMC1; RMC2; RMC3", minutes=3, read=Printed(r"^\| rmc1 \| lookups \| 256 \|.* ([\d.]+) \|$")),
    Check(row="MLPs of RMC1; RMC2; RMC3", minutes=3, read=Printed(r"^\| rmc1 \| MLPs \| 256 \|.* ([\d.]+) \|  \|$")),
    Check(row="processes that serve RMC2; RMC3", minutes=3, read=Printed(colocated("2 | 2"))),
    Check(row="the same, two that take turns on one core", minutes=3, read=Printed(colocated("2 | 1"))),
    Check(row="shares of a forward pass", minutes=3, read=Printed(r"^rmc1 +inference +512 +[\d.]+ +\d+ +([\d.]+)%")),
    Check(row="a step of `train_dlrm` without further options", minutes=3, read=Printed(r"bare loop: median ([\d.]+)")),
    Check(row="initial weights of 4 GB", minutes=3, number=1, read=Printed(r"threads, ([\d.]+) of the")),
    Check(row="saving 2 GB of tables", minutes=4, read=Printed(r"^peak memory of saving over training: ([\d.]+)")),
    Check(row="loading and verifying", minutes=4, read=Printed(r"^peak memory of loading over training: ([\d.]+)")),
    Check(row="ratio of planned milliseconds", minutes=4, read=Printed(r"^row_wise over table_wise: .*? (\d\.\d+);")),
    Check(row="demo with quantised", minutes=6, read=Printed(r"^fp16 +fp16 .* ([\d.]+) +[\d.]+$"), after="fp16"),
    Check(row="HSTU's layers", minutes=6, read=Printed(r'^\{"variant": "mlperf", "mean": 50,.* "ratio": ([\d.]+)')),
    Check(row="MiB that a step of these layers adds", minutes=6, read=Printed(r'"peak_megabytes": \[(\d+)')),
    Check(row="a step of `train_dlrm` criteo-kaggle", minutes=10, read=Printed(r"([\d.]+)% of it waiting")),
    Check(row=STALE, minutes=12, read=Printed(r'"progressive_auc": ([\d.]+)')),
    Check(row="the same: AUC that a model loses", minutes=12, read=Printed(r'"staleness": \{.*?"1": ([\d.]+)')),
    Check(
        row="AUC on rows whose pairs of values",
        minutes=15,
        read=Printed(r"^factorisation machine +\S+ ± \S+ +([\d.]+)"),
    ),
    Check(row="`compare_embeddings` demo", minutes=15, read=Printed(r'"qr-mult[^"]*": ([\d.]+)')),
    Check(row="the same of Chinese remainder mult;", minutes=15, read=Printed(r'"crt-mult[^"]*": ([\d.]+)')),
    Check(row="the same of path with 64 hidden units", minutes=15, read=Printed(r'"path-64[^"]*": ([\d.]+)')),
    Check(row="the same of QR feature generation", minutes=15, read=Printed(r'"qr-features[^"]*": ([\d.]+)')),
    Check(row="step with QR tables", minutes=15, read=Printed(rf"^kaggle{ROWWISE}mult .* ([\d.]+) of plain")),
    Check(row="DLRM 26 x 40,000 x 64", minutes=15, number=1, read=Printed(rf"^\| dlrm \| 64 \| {INT8} ([\d.]+) \|$")),
    Check(row="[RMC1, RMC2, RMC3]", minutes=15, number=3, read=Printed(rf"^\| rmc1 \| 64 \| {INT8} ([\d.]+) \|$")),
    Check(
        row="int8 tables with float32 MLPs",
        minutes=15,
        read=Printed(r"^\| dlrm \| 64 \| int8 tables \|.* ([\d.]+) \|$"),
    ),
    Check(row="`train_dlrm`, [half a demo]", minutes=15, read=Printed(r"^fitted to the bytes of 4 .* mean ([\d.]+)$")),
    Check(row="training, [kaggle-like]", minutes=25, read=Printed(r"^speed-up: .*kaggle-like sgd ([\d.]+)")),
    Check(row="training, kaggle-like, row-wise", minutes=25, read=Printed(r"kaggle-like rowwise_adagrad ([\d.]+)")),
    Check(row="training, [rm-like]", minutes=25, read=Printed(r"^speed-up: .*rm-like sgd ([\d.]+)")),
    Check(row="training, rm-like, row-wise", minutes=25, read=Printed(r"rm-like rowwise_adagrad ([\d.]+)")),
    Check(row="matrix factorisation of made-up", minutes=40, read=Printed(r"^ +256 rows +hash +([\d.]+)")),
    Check(row="the same with 2,048 rows", minutes=40, read=Printed(r"^ +2048 rows +hash +([\d.]+)")),
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
    mantissa, _, exponent = value.replace(MINUS, "-").partition("e")
    between = (number(low), number(high)) if low else None
    if deviation:
        between = (number(value) - 2 * number(deviation), number(value) + 2 * number(deviation))
    return Published(
        value=number(value), between=between, step=10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    )


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
    minutes: float = 0.0  # Run the cheapest rows, as many as end within this time by their estimates; 0 means all.
    rows: str = ""  # Run only rows that have this text; empty means all.


def minutes_since(began: float) -> float:
    """By a clock that only goes forward."""
    return (time.monotonic() - began) / 60


def main(config: Config) -> int:
    rows = list(rows_of((ROOT / "RESULTS.md").read_text()))
    print(f"processor: {processor()}; {os.cpu_count()} cores", flush=True)
    outputs: dict[str, tuple[int, str]] = {}
    end, verdicts, skipped = config.minutes or float("inf"), list[str](), list[tuple[str, str]]()
    began = time.monotonic()
    for check in sorted(CHECKS, key=lambda check: check.minutes):
        row = next(row for row in rows if row.what.startswith(check.row))
        cost = 0.0 if (check.command or row.command) in outputs else check.minutes
        if config.rows not in row.what:
            continue
        start = minutes_since(began)
        if start + cost > end:
            skipped.append((row.what, f"takes {cost:g} minutes more"))
            continue
        verdict, numbers = reproduce(check, row, outputs)
        verdicts.append(verdict)
        took = f"{minutes_since(began) - start:.1f} min"
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
