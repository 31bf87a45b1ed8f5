"""Sixty days of drift: managed tables and vocabularies keep their bytes, and tell what they forgot day by day."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.windows.open import list_windows
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig, Rules
from dlrm_torchrec.preparation.prepare import Source, Window, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.raw_parquet import ParquetReader
from dlrm_torchrec.preparation.splits import Whole
from dlrm_torchrec.schema import MANAGED_IDS, DatasetSpec, DenseFeature, SparseFeature
from tests.embeddings.managed.reference import Reference
from tests.recipe import load_recipe, records, run_recipe

DAYS = 60
ROWS, BATCH, TABLE_ROWS, DIM = 768, 256, 600, 4
RULES = Rules(update_every=2, max_age=8)


def arguments(folder: Path) -> list[str]:
    return [
        "managed", f"--rows={ROWS}", f"--batch-size={BATCH}", f"--windows.days={DAYS}", f"--run-dir={folder}",
        "--bottom", "8", str(DIM), "--top", "8", "1", "--log.every=100", f"--checkpoint.keep={DAYS}",
        "--tables.kind=managed", f"--tables.max-rows={TABLE_ROWS}", f"--tables.update-every={RULES.update_every}",
        f"--tables.max-age={RULES.max_age}",
    ]  # fmt: skip


def counted(folder: Path) -> Iterator[dict[str, float]]:
    """What the managed tables do on each day, by dictionaries and lists; ``returned`` are those that really did."""
    recipe = load_recipe("train_dlrm_daily")
    _, config = parse(recipe.PRESETS, arguments(folder))
    spec, windows = list_windows(config.data, config.shape, config.windows, rows=ROWS, seed=config.seed)
    tables = {
        feature.name: Reference(
            ManagedEmbeddingBagConfig(
                name=f"t_{feature.name}",
                num_embeddings=min(feature.rows, TABLE_ROWS),
                embedding_dim=DIM,
                feature_names=[feature.name],
                num_ids=MANAGED_IDS,
                rules=RULES,
            )
        )
        for feature in spec.sparse
    }
    for window in windows:
        totals = Counter[str]()
        for batch in window.train(Ranks(BATCH, 0, 1), epochs=1, seed=config.seed, lanes=1).batches():
            for name, table in tables.items():
                before, gone = {*table.last}, len(table.evicted)
                ids = batch.sparse_features[name].values().tolist()
                table.step(ids)
                come = table.last.keys() - before
                totals[f"t_{name}/lookups"] += len(ids)
                totals[f"t_{name}/without_row"] += sum(number not in before for number in ids)
                totals[f"t_{name}/admitted"] += len(come)
                totals[f"t_{name}/evicted"] += len(table.evicted) - gone
                totals[f"t_{name}/returned"] += len(come & {*table.evicted})
        yield {
            **totals,
            **{f"t_{name}/occupied": len(table.last) / table.config.num_embeddings for name, table in tables.items()},
            **{
                f"t_{name}/without_row": totals[f"t_{name}/without_row"] / totals[f"t_{name}/lookups"]
                for name in tables
            },
        }


@pytest.mark.slow
def test_managed_tables_forget_what_is_old(tmp_path: Path) -> None:
    run_recipe("train_dlrm_daily", arguments(tmp_path), 1)
    days = [record for record in records(tmp_path / "managed") if "val/unseen" in record]
    assert len(days) == DAYS
    told, true = defaultdict[str, float](float), defaultdict[str, float](float)
    for day, wanted in zip(days, counted(tmp_path), strict=True):
        for name, value in wanted.items():
            if name.endswith("/returned"):  # by traces of eight bits
                told[name] += day[name]
                true[name] += value
                assert day[name] <= value + 3 + day[name.replace("returned", "admitted")] / 20
            else:
                assert day[name] == pytest.approx(value, abs=1e-9), name
    for name, value in true.items():
        rows_given = sum(day[name.replace("returned", "admitted")] for day in days)
        rows_lost = sum(day[name.replace("returned", "evicted")] for day in days)
        assert rows_given - rows_lost == round(days[-1][name.replace("returned", "occupied")] * TABLE_ROWS)
        assert rows_lost > TABLE_ROWS
        assert value / 3 <= told[name] <= value + rows_given / 50
        print(f"{name}: {told[name]:.0f} of {value:.0f}; {rows_given:.0f} admitted, {rows_lost:.0f} evicted")
    sizes = {
        sum(file.stat().st_size for file in folder.iterdir() if file.name == "__0_0.distcp")
        for folder in (tmp_path / "managed/checkpoints").iterdir()
    }
    assert len(sizes) == 1


SPEC = DatasetSpec(
    name="sixty",
    label="y",
    dense=(DenseFeature(name="x"),),
    sparse=(
        SparseFeature(name="item", rows=0, encoding="vocab", min_count=2),
        SparseFeature(name="user", rows=0, encoding="vocab"),
        SparseFeature(name="shop", rows=42, encoding="vocab"),  # full from the first day on
    ),
)
HEADROOM, MAX_AGE, DAY_ROWS = 0.5, 3, 300
FOREVER, OTHERS = 20, 90  # values that are always there, and those that may be there on a day
BYTES_PER_VALUE, BYTES_PER_FILE = 8 + 8 + 8 + 3 * 4, 2_000  # a value in vocab/ and counts/, its numbers, and a schema


class Ledger:
    """The vocabulary of a table from day to day, in dictionaries."""

    def __init__(self, feature: SparseFeature) -> None:
        self.min_count, self.capacity = feature.min_count, max(feature.rows - 2, 0)
        self.count, self.seen, self.evicted = Counter[int](), dict[int, int](), dict[int, int]()
        self.ids: set[int] = set()
        self.day = 0

    def next_day(self, values: list[int]) -> dict[str, int]:
        self.day += 1
        self.count.update(values)
        self.seen |= dict.fromkeys(values, self.day)
        old = [value for value in self.count if self.seen[value] <= self.day - MAX_AGE]
        aged = self.ids & {*old}
        for value in old:
            del self.count[value], self.seen[value]
        self.evicted |= dict.fromkeys(aged, self.day)
        kept = self.ids - aged
        deserving = [value for value, count in self.count.items() if value in kept or count >= self.min_count]
        deserving.sort(key=lambda value: (-self.count[value], value not in kept, value))
        self.capacity = self.capacity or math.ceil(len(deserving) * (1 + HEADROOM))
        self.ids = {*deserving[: self.capacity]}
        crowded, added = kept - self.ids, self.ids - kept
        returned = added & self.evicted.keys()
        self.evicted |= dict.fromkeys(crowded, self.day)
        self._forget()
        return {
            "rows": 2 + self.capacity,
            "values": len(self.ids),
            "waiting": len(self.count) - len(self.ids),
            "added": len(added),
            "returned": len(returned),
            "evicted_by_age": len(aged),
            "evicted_by_count": len(crowded),
        }

    def _forget(self) -> None:
        """Of values without a count, remember those that lost their ids last, as many as the table has room for."""
        gone = sorted(value for value in self.evicted if value not in self.count)
        gone.sort(key=lambda value: -self.evicted[value])
        for value in gone[self.capacity :]:
            del self.evicted[value]

    @property
    def remembered(self) -> int:
        return len({*self.count, *self.evicted})


def write_day(path: Path, day: int, draw: random.Random) -> dict[str, list[int]]:
    """Values of which some are always there, and others come, go and come back."""
    values = {
        feature.name: [
            draw.randrange(FOREVER) if draw.random() < 0.3 else 100 * (1 + day % 5) + int(OTHERS * draw.random() ** 2)
            for _ in range(DAY_ROWS)
        ]
        for feature in SPEC.sparse
    }
    labels = {"y": [draw.randrange(2) for _ in range(DAY_ROWS)], "x": [draw.random() for _ in range(DAY_ROWS)]}
    pq.write_table(pa.table(labels | values), path)
    return values


@pytest.mark.slow
def test_vocabularies_forget_what_is_old(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    ledgers = {feature.name: Ledger(feature) for feature in SPEC.sparse}
    totals, most = Counter[str](), 0
    for day in range(DAYS):
        path, folder = tmp_path / f"day-{day}.parquet", tmp_path / f"out-{day}"
        values = write_day(path, day, draw)
        window = Window(after=str(tmp_path / f"out-{day - 1}")) if day else Window(headroom=HEADROOM, max_age=MAX_AGE)
        source = Source(path=str(path), reader=ParquetReader(columns=Columns(spec=SPEC)), assignment=Whole("train"))
        lineage = prepare(SPEC, [source], str(folder), window=window).lineage
        assert lineage is not None
        for name, ledger in ledgers.items():
            report = ledger.next_day(values[name])
            changes = lineage.changes[name]
            assert {what: getattr(changes, what) for what in report} == report, (day, name)
            totals.update({what: report[what] for what in ("added", "returned", "evicted_by_age", "evicted_by_count")})
            remembered = pq.ParquetFile(folder / f"counts/{name}.parquet").metadata.num_rows
            assert remembered == ledger.remembered
            # values of the last windows, and as many as have room, however many days there were
            assert remembered <= FOREVER + MAX_AGE * OTHERS + ledger.capacity
        size = sum(file.stat().st_size for part in ("vocab", "counts") for file in (folder / part).iterdir())
        values_kept = sum(FOREVER + MAX_AGE * OTHERS + ledger.capacity for ledger in ledgers.values())
        bound = values_kept * BYTES_PER_VALUE + 2 * len(ledgers) * BYTES_PER_FILE
        assert size <= bound
        most = max(most, size)
    held = sum(len(ledger.ids) for ledger in ledgers.values())
    assert totals["added"] - totals["evicted_by_age"] - totals["evicted_by_count"] == held
    assert min(totals.values()) > DAYS
    print(f"{dict(totals)}, {held} have ids; at most {most} of {bound} bytes")
