"""Made-up files in the forms of Criteo's train.txt and of BARS' Criteo_x1, and a slow, plain reading of x4."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np

from dlrm_torchrec.datasets.criteo import BARS_COLUMNS


def write_train_txt(path: Path, rows: int, seed: int) -> list[list[str]]:
    """The fields of each line of a file like Criteo's, with missing values, negative numbers and rare categories."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        numbers = ["" if random.random() < 0.2 else str(int(random.pareto(0.6) * 3) - 2) for _ in range(13)]
        ids = ["" if random.random() < 0.1 else f"{random.zipf(1.4) * 2654435761 % 2**32:08x}" for _ in range(26)]
        lines.append([str(int(random.random() < 0.25)), *numbers, *ids])
    path.write_text("".join("\t".join(fields) + "\n" for fields in lines))
    return lines


def write_x1(folder: Path, rows: dict[str, int], seed: int) -> dict[str, list[list[str]]]:
    """Files like those of Criteo_x1, by their stem: a header, numbers from 0 to 1, and categories as numbers."""
    random = np.random.default_rng(seed)
    files = {}
    for stem, count in rows.items():
        lines = [
            [
                str(int(random.random() < 0.25)),
                *(f"{value:.6f}" for value in random.random(13)),
                *(str(random.zipf(1.4) % 100_000) for _ in range(26)),
            ]
            for _ in range(count)
        ]
        header = ",".join(("label", *BARS_COLUMNS))
        (folder / f"{stem}.csv").write_text("".join(f"{line}\n" for line in (header, *map(",".join, lines))))
        files[stem] = lines
    return files


def bucket(text: str) -> str:
    """What BARS makes of an integer: floor(ln(x)²) above 2, else the integer; a missing one is 0."""
    value = int(text or 0)
    return str(math.floor(math.log(value) ** 2) if value > 2 else value)


def x4_ids(lines: list[list[str]], training: list[int]) -> list[list[int]]:
    """The 39 ids of each line: 0 for missing, 1 for fewer than 10 in training, then by frequency, then by value."""
    columns: list[list[int]] = []
    for place in range(1, 40):
        values = [bucket(fields[place]) if place <= 13 else fields[place] for fields in lines]
        counts = Counter(values[i] for i in training if values[i])
        kept = sorted((v for v in counts if counts[v] >= 10), key=lambda v: (-counts[v], order(v)))
        ids = {value: i for i, value in enumerate(kept, start=2)}
        columns.append([ids.get(value, 1) if value else 0 for value in values])
    return [list(row) for row in zip(*columns, strict=True)]


def order(text: str) -> tuple[bool, int, str]:
    """Numbers in their order, then texts in theirs; a text with a leading zero is no number."""
    is_number = text.lstrip("-").isdigit() and str(int(text)) == text
    return (not is_number, int(text) if is_number else 0, text)
