"""Rows per second and peak memory of data/criteo/prepare.py (goals: >= 1 M rows/s on 2 cores, >= 20 x, <= 2 GiB).

    python benchmarks/criteo_preparation.py

generates a TSV file like Criteo's (5 M rows, 1.2 GB, with missing values and categories by Zipf's law over Kaggle's
cardinalities) and prepares it with two workers, hashed and with exact vocabularies. The time is that of the whole
command including its start. It is compared to a plain Python loop over rows that writes the same (checked in every run)
and to torchrec's own script on the same file. Both are measured on the first rows and without their start, because the
whole file would take minutes, and the script needs about 1.8 GB per million rows.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from numpy.typing import NDArray

from dlrm_torchrec.datasets.criteo import DENSE_NAMES, KAGGLE_ROWS, LABEL, SPARSE_NAMES

PREPARE = Path(__file__).parent.parent / "data" / "criteo" / "prepare.py"
BLOCK_ROWS, MAX_ROW_BYTES = 100_000, 600

# The script for Kaggle writes one file of each kind. The next script, `contiguous_preproc_criteo`, accepts only 24
# days, so its function is called directly. The printed times do not include the import of torch.
TORCHREC = """
import sys, time, torchrec.datasets.scripts.npy_preproc_criteo as script
from torchrec.datasets.criteo import BinaryCriteoUtils
folder = sys.argv[1]
begin = time.perf_counter()
script.main(["--input_dir", folder, "--output_dir", folder, "--dataset_name", "criteo_kaggle"])
converted = time.perf_counter()
BinaryCriteoUtils.sparse_to_contiguous([f"{folder}/train_sparse.npy"], folder, frequency_threshold=0)
print(converted - begin, time.perf_counter() - begin)
"""


@dataclass(frozen=True)
class Config:
    rows: int = 5_000_000  # rows of the file
    few_rows: int = 1_000_000  # rows of a smaller file, to compare peak memory
    python_rows: int = 100_000  # rows for the Python loop
    torchrec_rows: int = 200_000  # rows for torchrec's script
    rounds: int = 3  # repetitions; the best one counts
    workers: int = 2


@numba.njit()
def fill(text: NDArray[np.uint8], rows: int, sizes: NDArray[np.float64], seed: int) -> int:
    """Writes ``rows`` random lines to ``text``, and returns their number of bytes."""
    np.random.seed(seed)
    at = 0
    for _ in range(rows):
        text[at] = 48 + (np.random.random() < 0.25)
        at += 1
        for j in range(13):
            text[at] = 9
            at += 1
            if np.random.random() < 0.2:
                continue
            value = np.int64(np.exp(np.random.random() * (2 + 0.7 * j))) - 1  # 0 to 4 digits
            if j == 1 and np.random.random() < 0.1:
                text[at] = 45
                at, value = at + 1, 1 + value % 2
            digits, power = 1, 10
            while value >= power:
                digits, power = digits + 1, power * 10
            for k in range(digits):
                text[at + digits - 1 - k] = 48 + value % 10
                value //= 10
            at += digits
        for j in range(26):
            text[at] = 9
            at += 1
            if j % 3 == 2 and np.random.random() < 0.3:
                continue
            rank = np.uint64(sizes[j] ** np.random.random())  # its logarithm is uniform: Zipf's law
            word = (rank * np.uint64(26) + np.uint64(j)) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
            for k in range(8):
                digit = (word >> np.uint64(4 * k)) & np.uint64(15)
                text[at + k] = (48 if digit < 10 else 87) + digit
            at += 8
        text[at] = 10
        at += 1
    return at


def generate(path: Path, rows: int) -> None:
    text, sizes = np.empty(BLOCK_ROWS * MAX_ROW_BYTES, np.uint8), np.array(KAGGLE_ROWS, np.float64)
    with path.open("wb") as file:
        for first in range(0, rows, BLOCK_ROWS):
            file.write(text[: fill(text, min(BLOCK_ROWS, rows - first), sizes, first)].data)


def head(path: Path, rows: int, target: Path) -> None:
    """Writes the first rows of a file to another file."""
    with path.open("rb") as whole, target.open("wb") as file:
        file.writelines(islice(whole, rows))


def hashed(value: int, rows: int) -> int:
    """The id of a value, as data/criteo/README.md defines it."""
    x = (value + 0x9E3779B97F4A7C15) & (1 << 64) - 1
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & (1 << 64) - 1
    return 1 + (x ^ (x >> 31)) % rows


def row_by_row(path: Path, rows: int, output: Path) -> float:
    """Rows per second of a loop that writes the same as ``prepare --encoding hash`` for the first rows of a file."""
    begin, waiting = time.perf_counter(), []
    names = (LABEL, *DENSE_NAMES, *SPARSE_NAMES)
    schema = pa.schema([(name, pa.int32() if name in SPARSE_NAMES else pa.float32()) for name in names])
    with path.open() as file, pq.ParquetWriter(output, schema, compression="lz4", use_dictionary=False) as writer:
        for number, line in enumerate(islice(file, rows), start=1):
            fields = line.rstrip("\n").split("\t")
            row = [float(fields[0])]
            row += [math.log1p(max(int(value), 0)) if value else 0.0 for value in fields[1:14]]
            for value, size in zip(fields[14:], KAGGLE_ROWS, strict=True):
                row.append(hashed(int(value, 16), size) if value else 0)
            waiting.append(row)
            if len(waiting) == 65_536 or number == rows:
                columns = zip(*waiting, strict=True)
                arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                waiting = []
    return rows / (time.perf_counter() - begin)


def check(output: Path, expected: Path) -> None:
    """Asserts that the first training rows of a prepared folder equal those of the loop."""
    wanted = pq.read_table(expected)
    parts = sorted((output / "train").iterdir())
    found = pq.ParquetDataset(parts[: 2 + wanted.num_rows // 65_536]).read().slice(0, wanted.num_rows)
    for name in wanted.column_names:
        a, b = found[name].to_numpy(), wanted[name].to_numpy()
        assert np.array_equal(a, b) if name in SPARSE_NAMES else np.allclose(a, b, rtol=1e-6), name


@dataclass(frozen=True)
class Memory:
    """Resident bytes of some processes; bytes that several processes share count once."""

    total: int = 0
    private: int = 0  # without mapped files, which the system can release when it needs memory

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.total + other.total, self.private + other.private)

    def __or__(self, other: Memory) -> Memory:
        return Memory(max(self.total, other.total), max(self.private, other.private))

    def __str__(self) -> str:
        return f"{self.total / 2**20:,.0f} MiB ({self.private / 2**20:,.0f} without mapped files)"


def memory(process: int) -> Memory:
    """The memory that a process and its children use now."""
    held = Memory()
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        for number in (str(process), *children):
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()[1:]
            sizes = {line.split()[0]: int(line.split()[1]) << 10 for line in lines}
            held += Memory(sizes["Pss:"], sizes["Pss_Anon:"])
    except (OSError, KeyError):  # a process has just ended
        pass
    return held


def run(command: list[str]) -> tuple[float, Memory, str]:
    """Seconds, peak memory and output of a command."""
    begin, peak = time.perf_counter(), Memory()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.poll() is None:
        peak |= memory(process.pid)
        time.sleep(0.2)
    seconds = time.perf_counter() - begin
    assert process.returncode == 0
    return seconds, peak, process.stdout.read()


def prepare(path: Path, output: Path, encoding: str, workers: int) -> tuple[float, Memory]:
    """Seconds and peak memory of the whole command."""
    command = [sys.executable, str(PREPARE), "kaggle", "--input", str(path), "--output", str(output), "--overwrite"]
    seconds, peak, _ = run([*command, "--encoding", encoding, "--workers", str(workers)])
    return seconds, peak


def main(cfg: Config) -> None:
    rates: dict[tuple[str, int], float] = defaultdict(float)
    peaks: dict[tuple[str, int], Memory] = defaultdict(Memory)
    loop_rate = converted_rate = contiguous_rate = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {rows: folder / f"{rows}.tsv" for rows in (cfg.few_rows, cfg.rows)}
        for rows, path in files.items():
            generate(path, rows)
        (folder / "torchrec").mkdir()
        head(files[cfg.rows], cfg.torchrec_rows, folder / "torchrec" / "train.txt")
        print(f"{cfg.rows:,} rows, {files[cfg.rows].stat().st_size / 1e9:.2f} GB, {cfg.workers} workers", flush=True)
        for number in range(cfg.rounds):
            print(f"round {number}, load {os.getloadavg()[0]:.1f}", flush=True)
            for encoding in ("hash", "vocab"):
                for rows, path in files.items():
                    seconds, peak = prepare(path, folder / encoding, encoding, cfg.workers)
                    rates[encoding, rows] = max(rates[encoding, rows], rows / seconds)
                    peaks[encoding, rows] |= peak
                    print(f"  {encoding}, {rows:,} rows: {rows / seconds:,.0f} rows/s, peak {peak}", flush=True)
            rate = row_by_row(files[cfg.rows], cfg.python_rows, folder / "rows.parquet")
            loop_rate = max(loop_rate, rate)
            check(folder / "hash", folder / "rows.parquet")
            print(f"  loop over {cfg.python_rows:,} rows: {rate:,.0f} rows/s, equal", flush=True)
            _, peak, said = run([sys.executable, "-W", "ignore", "-c", TORCHREC, str(folder / "torchrec")])
            converted, contiguous = (cfg.torchrec_rows / float(seconds) for seconds in said.splitlines()[-1].split())
            converted_rate, contiguous_rate = max(converted_rate, converted), max(contiguous_rate, contiguous)
            print(
                f"  torchrec, {cfg.torchrec_rows:,} rows: {converted:,.0f} rows/s, {contiguous:,.0f} with contiguous "
                f"ids, peak {peak}",
                flush=True,
            )
    hashed, exact = rates["hash", cfg.rows], rates["vocab", cfg.rows]
    print(
        f"hashed: {hashed:,.0f} rows/s, {hashed / loop_rate:.0f} x the loop over rows, "
        f"{hashed / converted_rate:.0f} x torchrec's script\n"
        f"exact vocabularies: {exact:,.0f} rows/s, {exact / loop_rate:.0f} x the loop over rows (which hashes), "
        f"{exact / contiguous_rate:.0f} x torchrec's script with contiguous ids"
    )
    for (encoding, rows), peak in peaks.items():
        print(f"{encoding}, {rows:,} rows: peak {peak}")


if __name__ == "__main__":
    main(tyro.cli(Config))
