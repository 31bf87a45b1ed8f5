"""Write a made-up log of clicks with the traps of real files, and the best AUC that any model can expect on its rows.

    python data/practice/generate.py --output clicks.csv
    python data/practice/generate.py --rows 200000 --positive_share 0.02 --output rare.parquet
    python data/practice/generate.py --by_day --output clicks.csv

The label is drawn from a known probability, so that probability's own AUC is the best possible one. It is printed and
written beside the file. Expected: 0.8003 for the first command.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import tyro
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FIRST_SECOND = 1_700_000_000  # of the log: 14 November 2023, 22:13:20 UTC, a Tuesday
DAYS = 14
MISSING_PRICES = 0.1
SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Config:
    output: str  # File to write: its name ends in .csv or .parquet.
    rows: int = 10_000  # Number of rows, at least 100.
    positive_share: float = 0.2  # Share of rows with label 1, about; 0.02 is a rare label.
    seed: int = 0  # Seed of the codes, their effects and the rows.
    by_day: bool = False  # Write a file for each day: clicks-01.csv, clicks-02.csv, ... for clicks.csv.

    def __post_init__(self) -> None:
        if self.rows < 100:
            raise ValueError(f"rows must be at least 100: got {self.rows}; raise them")
        if not 0 < self.positive_share < 1:
            raise ValueError(f"positive_share must be between 0 and 1: got {self.positive_share}; try 0.2")
        if not self.output.endswith(SUFFIXES):
            raise ValueError(f"output must end in .csv or .parquet: got {self.output!r}; rename it")


def categories(random: np.random.Generator, rows: int, values: int, *, skew: float) -> Ints:
    """Numbers below ``values`` (rows,), of which number k is drawn in proportion to (k + 1)^-skew."""
    weights = np.arange(1, values + 1) ** -skew
    return random.choice(values, rows, p=weights / weights.sum())


def codes(random: np.random.Generator, values: int, digits: int) -> Ints:
    """Distinct integers of so many digits, in an order that says nothing."""
    low = 10 ** (digits - 1)
    drawn = np.unique(random.integers(low, 10 * low, 2 * values + 100))
    return random.permutation(drawn)[:values]


def scaled(values: Floats) -> Floats:
    """The values with mean 0 and deviation 1."""
    result: Floats = (values - values.mean()) / values.std()
    return result


def bias_for(logits: Floats, share: float) -> float:
    """What to add to logits so that their mean probability is ``share``."""
    low, high = -60.0, 60.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(1 / (1 + np.exp(-logits - middle))) < share else (low, middle)
    return low


def generate(cfg: Config) -> tuple[dict[str, pa.Array], Floats, Ints]:
    """The columns of the file without the label, the probability of a click (rows,), and the labels drawn (rows,)."""
    random, rows = np.random.default_rng(cfg.seed), cfg.rows
    seconds = np.sort(random.integers(FIRST_SECOND, FIRST_SECOND + DAYS * 86_400, rows))
    hours = seconds / 3600 % 24
    site = categories(random, rows, 12, skew=0.8)
    advert = categories(random, rows, 300, skew=1.0)
    device = categories(random, rows, max(50, rows // 5), skew=0.7)
    city = categories(random, rows, 40, skew=1.0)
    visits = np.floor(random.lognormal(1.5, 1.6, rows))
    price = np.round(random.lognormal(3.0, 0.8, rows), 2)
    missing = random.random(rows) < MISSING_PRICES

    logits = np.sin((hours - 9) * 2 * np.pi / 24) * 0.6
    for column, strength in ((site, 0.5), (advert, 0.7), (device, 0.4), (city, 0.4)):
        logits += strength * random.normal(size=column.max() + 1)[column]
    logits += 0.25 * random.choice([-1, 1], advert.max() + 1)[advert] * random.choice([-1, 1], city.max() + 1)[city]
    logits += 0.5 * scaled(np.log1p(visits)) + np.where(missing, 0.7, -0.3 * scaled(np.log(price)))
    probabilities = 1 / (1 + np.exp(-logits - bias_for(logits, cfg.positive_share)))
    labels = (random.random(rows) < probabilities).astype(np.int64)

    days = (seconds // 86_400 + 3) % 7  # 1 January 1970 was a Thursday; 0 is Monday
    columns = {
        "row_id": pa.array(np.arange(100_000_000, 100_000_000 + rows)),
        "time": pa.array(seconds),
        "weekend": pa.array(np.where(days >= 5, "yes", "no")),
        "site": pa.array(codes(random, 12, 3)[site]),
        "advert": pa.array(codes(random, 300, 5)[advert]),
        "device": pa.array(codes(random, device.max() + 1, 9)[device]),
        "city": pa.array(np.array([f"city {name}" for name in codes(random, 40, 4)])[city]),
        "version": pa.array(np.full(rows, 3)),
        "visits": pa.array(visits.astype(np.int64)),
        "price": pa.array(price, mask=missing),
    }
    return columns, probabilities, labels


def auc(scores: Floats, labels: Ints) -> float:
    """The share of pairs of a positive and a negative row in which the positive has the higher score; ties count half.

    NaN without such pairs.
    """
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]  # from 1; equal scores share their mean rank
    positives = int(labels.sum())
    pairs = positives * (len(labels) - positives)
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / pairs) if pairs else float("nan")


def write(table: pa.Table, path: str) -> None:
    """Write rows as Parquet or text, by the ending of the name."""
    if path.endswith(".parquet"):
        pq.write_table(table, path)
        return
    texts = ["NA" if each is None else f"{each:.2f}" for each in table["price"].to_pylist()]
    table = table.set_column(table.column_names.index("price"), "price", pa.array(texts))
    pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(quoting_style="needed"))


def main(cfg: Config) -> dict[str, float]:
    columns, probabilities, labels = generate(cfg)
    table = pa.table({**columns, "clicked": pa.array(labels)})
    if cfg.by_day:
        stem, ending = cfg.output.rsplit(".", 1)
        day = (columns["time"].to_numpy() - FIRST_SECOND) // 86_400
        for number in range(DAYS):
            write(table.filter(pa.array(day == number)), f"{stem}-{number + 1:02d}.{ending}")
    else:
        write(table, cfg.output)
    known = {"rows": cfg.rows, "positives": int(labels.sum()), "best_auc": auc(probabilities, labels)}
    Path(cfg.output).with_suffix(".best.json").write_text(json.dumps(known) + "\n")
    print(
        f"{cfg.output}: {known['rows']:,} rows, {known['positives']:,} positives; "
        f"no model can expect an AUC above {known['best_auc']:.4f} on all of them"
    )
    return known


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
