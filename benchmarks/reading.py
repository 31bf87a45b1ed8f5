"""Speed of reading prepared rows, per core and compared to other readers, and how long training waits for batches.

    python benchmarks/reading.py                     # 2.5 GB of files, 6 GB of memory, about 10 minutes
    python benchmarks/reading.py --parts training    # only the share of a training step

The rows have 1 label, 13 dense columns and 26 ids, and then 214 ids in 26 lists, as ``prepare`` writes them. The
contenders take turns in one process, and read all rows in each turn. A rate is the median over turns, and a ratio is
the median of the ratios within a turn. A "core second" is a second of CPU time, summed over all threads.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import torch
import tyro
from torch.utils.data import DataLoader, TensorDataset
from torchrec.datasets.criteo import InMemoryBinaryCriteoIterDataPipe
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrm_torchrec.datasets import multi_hot
from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.criteo import criteo_kaggle_spec
from dlrm_torchrec.datasets.open import open_streams
from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest, Split
from dlrm_torchrec.datasets.prepared.parquet import ParquetStream
from dlrm_torchrec.datasets.prepared.writer import ROW_GROUP_ROWS, SplitWriter
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.zipf import Zipf
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.preparation.passes.encode import prepared_schema
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.optimizers import build_optimizer
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.world import join_world

Part = Literal["one-hot", "multi-hot", "training"]
Reader = Callable[[], Iterable[int]]  # the rows of each batch


def prepare(folder: Path, rows: int) -> None:
    """Writes a prepared folder with Criteo's columns."""
    spec, random = criteo_kaggle_spec(), np.random.default_rng(0)
    schema, zipf = prepared_schema(spec), [Zipf(feature.rows, 1.1) for feature in spec.sparse]
    splits = {}
    for split, count in (("train", rows), ("val", ROW_GROUP_ROWS)):
        with SplitWriter(str(folder), split, unit=0, schema=schema, row_group_rows=ROW_GROUP_ROWS) as writer:
            for first in range(0, count, ROW_GROUP_ROWS):
                block = min(ROW_GROUP_ROWS, count - first)
                columns: list[Any] = [random.integers(0, 2, block).astype(np.float32)]
                columns += [np.log1p(random.pareto(1.0, block)).astype(np.float32) for _ in spec.dense]
                columns += [each.ids(random.random(block)).astype(np.int32) for each in zipf]
                writer.write(pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema))
        files = (DataFile(path=file.path, rows=count, sha256=file.sha256) for file, count in writer.files)
        splits[split] = Split(files=tuple(files))
    Manifest(spec=spec, splits=splits).save(str(folder))


def files(folder: Path) -> list[str]:
    return [file.location(str(folder)) for file in Manifest.load(str(folder)).splits["train"].files]


def ours(folder: Path, batch_size: int, *, shuffle: bool) -> Reader:
    stream = ParquetStream(str(folder), "train", global_batch_size=batch_size, shuffle=shuffle)
    return lambda: (batch.num_rows for batch in stream.batches())


def arrow_batches(folder: Path, batch_size: int) -> Reader:
    def read() -> Iterator[int]:
        for path in files(folder):
            yield from (len(batch) for batch in pq.ParquetFile(path).iter_batches(batch_size, use_threads=False))

    return read


def arrow_scanner(folder: Path, batch_size: int) -> Reader:
    paths = files(folder)
    return lambda: (len(batch) for batch in pds.dataset(paths).to_batches(batch_size=batch_size, use_threads=False))


def in_memory(folder: Path) -> list[np.ndarray]:
    """Dense columns, ids and labels of all rows."""
    spec, table = Manifest.load(str(folder)).spec, pds.dataset(files(folder)).to_table()
    dense, sparse = (np.stack([table[f.name].to_numpy() for f in part], axis=1) for part in (spec.dense, spec.sparse))
    return [dense, sparse, table[spec.label].to_numpy()[:, None]]


def torchrec_reader(folder: Path, batch_size: int) -> Reader:
    names = [str(folder / f"{part}.npy") for part in ("dense", "sparse", "labels")]
    if not os.path.exists(names[0]):
        for name, values in zip(names, in_memory(folder), strict=True):
            np.save(name, values)
    read = InMemoryBinaryCriteoIterDataPipe("train", *([name] for name in names), batch_size, 0, 1)
    return lambda: (len(batch.labels) for batch in read)


def row_by_row(folder: Path, batch_size: int, rows: int = 100_000) -> Reader:
    data = TensorDataset(*(torch.from_numpy(values[:rows]) for values in in_memory(folder)))
    return lambda: (len(batch[0]) for batch in DataLoader(data, batch_size, shuffle=True))


def compare(title: str, readers: dict[str, Reader], turns: int) -> None:
    """Prints the rates of all readers, and the ratio of each to the first reader."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for turn in range(turns + 1):  # the first turn warms up
        for name, read in readers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            rows = sum(read())
            rate = rows / (time.perf_counter() - wall) / 1e6, rows / (time.process_time() - cpu) / 1e6
            if turn:
                rates[name].append(rate)
    print(f"\n{title}: M rows per second, per core second, and per core second relative to the first")
    first = next(iter(rates.values()))
    for name, found in rates.items():
        wall, cpu = (statistics.median(each) for each in zip(*found, strict=True))
        ratio = statistics.median(own[1] / other[1] for own, other in zip(found, first, strict=True))
        print(f"  {name:45} {wall:6.2f} {cpu:6.2f} {ratio:6.2f}", flush=True)


def one_hot(folder: Path, turns: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    for batch_size in (2048, 16_384):
        os.sched_setaffinity(0, cores[-1:])
        readers = {
            "this stream, shuffled": ours(folder, batch_size, shuffle=True),
            "this stream, in order": ours(folder, batch_size, shuffle=False),
            "pyarrow iter_batches, no tensors": arrow_batches(folder, batch_size),
            "pyarrow dataset scanner, no tensors": arrow_scanner(folder, batch_size),
            "torchrec, all rows in memory, in order": torchrec_reader(folder, batch_size),
            "torch DataLoader, all rows in memory, shuffled": row_by_row(folder, batch_size),
        }
        compare(f"40 columns, batches of {batch_size}, one core", readers, turns)
        os.sched_setaffinity(0, cores)
        compare(f"40 columns, batches of {batch_size}, {len(cores)} cores", dict(islice(readers.items(), 2)), turns)


def lists(folder: Path, turns: int) -> None:
    stored, made = folder / "stored", folder / "made"
    if not made.exists():
        with redirect_stdout(StringIO()):
            multi_hot.main(str(folder), str(stored), materialize=True)
            multi_hot.main(str(folder), str(made))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-1:])
    readers = {
        "this stream, lists in files, shuffled": ours(stored, 2048, shuffle=True),
        "this stream, lists in files, in order": ours(stored, 2048, shuffle=False),
        "this stream, lists made of ids, shuffled": ours(made, 2048, shuffle=True),
        "this stream, lists made of ids, in order": ours(made, 2048, shuffle=False),
        "pyarrow iter_batches, no tensors": arrow_batches(stored, 2048),
    }
    compare("214 ids in 26 lists, batches of 2048, one core", readers, turns)
    os.sched_setaffinity(0, cores)


def training(folder: Path, turns: int, steps: int = 200) -> None:
    """Prints how long a step of the criteo-kaggle preset waits for its batch, compared to batches that are ready."""
    recipe = load_training_recipe("train_dlrm")
    cfg = replace(recipe.PRESETS["criteo-kaggle"], data=str(folder))
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with join_world(cfg.seed) as world:
        spec = criteo_kaggle_spec()
        model, tables = recipe.build(cfg, spec, world.size, world.device)
        topology = live_topology(world.device, world_size=world.size, local_size=world.local_size)
        plan = make_plan(
            model, tables, topology, cfg.sharding, batch_size=cfg.batch_size, spec=spec, group=world.control
        )
        model = DistributedModelParallel(
            model, device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=world.needs_ddp
        )
        initialize_tables(model, seed=cfg.seed)
        pipeline = train_pipeline(model, build_optimizer(model, cfg.sparse, cfg.dense), world)
        ranks = Ranks(cfg.batch_size, 0, 1)
        streams = open_streams(cfg.data, spec, ranks, rows=cfg.rows, epochs=1, seed=cfg.seed, lanes=1)
        waited = 0.0

        def timed(batches: Iterator[Batch]) -> Iterator[Batch]:
            nonlocal waited
            while True:
                begin = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - begin
                yield batch

        read = timed(streams["train"].batches())
        ready = chain.from_iterable(repeat(list(islice(streams["train"].batches(), steps))))
        found = []
        for turn in range(turns + 1):
            waited, begin = 0.0, time.perf_counter()
            for _ in range(steps):
                pipeline.progress(read)
            from_files, begin = time.perf_counter() - begin, time.perf_counter()
            for _ in range(steps):
                pipeline.progress(ready)
            from_memory = time.perf_counter() - begin
            if turn:
                found.append((from_files / steps * 1e3, waited / from_files, from_files / from_memory))
    milliseconds, share, ratio = (statistics.median(each) for each in zip(*found, strict=True))
    print(
        f"\ncriteo-kaggle, batches of {cfg.batch_size} on {torch.get_num_threads()} cores: a step takes "
        f"{milliseconds:.2f} ms, {share:.2%} of it waiting for the batch; relative to batches in memory: {ratio:.3f}"
    )


def main(
    parts: tuple[Part, ...] = ("one-hot", "multi-hot", "training"),
    rows: int = 4_194_304,
    turns: int = 5,
    folder: str | None = None,
) -> None:
    """Measure how fast prepared rows are read.

    Args:
        parts: what to measure
        rows: rows to read in a turn; a sixth of them if rows have lists
        turns: turns of each contender
        folder: folder that keeps the generated rows; without one, they are deleted at the end
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(folder or temporary)
        for name, count in (("rows", rows), ("lists", rows // 6)):
            if not (root / name).exists():
                prepare(root / name, count)
        if "one-hot" in parts:
            one_hot(root / "rows", turns)
        if "multi-hot" in parts:
            lists(root / "lists", turns)
        if "training" in parts:
            training(root / "rows", turns)


if __name__ == "__main__":
    tyro.cli(main)
