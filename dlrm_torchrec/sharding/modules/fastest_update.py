"""Which kernel updates a table fastest on this machine: measured in milliseconds, once."""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import nn
from torchrec.optim import RowWiseAdagrad

from dlrm_torchrec.embeddings.tables import model_configs
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.modules.sharder import table_optimizer
from dlrm_torchrec.sharding.modules.sorted_updates import use_sorted_updates

MOST_TABLES, MOST_IDS = 4, 2**18  # of a measurement, and of its batch
NUMBERS = 2**25  # of the measured tables: 128 MiB, because a training step leaves little of a table in the caches
ROUNDS = 7
FBGEMM_NAMES = {  # of the optimizers that FBGEMM has for CPU
    torch.optim.SGD: EmbOptimType.EXACT_SGD,
    torch.optim.Adagrad: EmbOptimType.EXACT_ADAGRAD,
    RowWiseAdagrad: EmbOptimType.EXACT_ROWWISE_ADAGRAD,
}


def sorting_pays(tables: nn.Module, spec: DatasetSpec, batch_size: int) -> bool:
    """Whether the lookup and the update of ``tables`` take less time over sorted ids than by FBGEMM on this machine.

    Measured are a few tables that get as many ids each as a table of this run does, of the mean number of rows.
    The tables are marked with their optimizer; where FBGEMM has none for CPU, the answer is True without a
    measurement. The times are kept in the user's cache folder, by model of processor. All processes of a host wait for
    the one that measures, so that they choose alike; ``XDG_CACHE_HOME`` names another folder, and without a writable
    one, each process measures for itself.
    """
    optimizer = FBGEMM_NAMES.get(table_optimizer(tables))
    if optimizer is None:
        return True
    configs = model_configs(tables)
    features = sum(len(config.feature_names) for config in configs)
    dim = max(config.embedding_dim for config in configs)
    count = max(1, min(MOST_TABLES, features // torch.get_num_threads()))  # of the tables of a thread
    ids = max(1, round(fmean(feature.pooling_factor for feature in spec.sparse)))  # of a bag
    work = Work(
        tables=count,
        rows=_about(min(fmean(config.num_embeddings for config in configs), NUMBERS / dim / count)),
        dim=dim,
        bags=_about(min(batch_size, MOST_IDS / count / ids)),
        ids=ids,
    )
    what = f"{optimizer.value} of {work}"
    key = f"{what} on {processor()}, fbgemm {_fbgemm_version()}, numba {version('numba')}"
    path = cache_folder() / "updates.json"
    with _alone(path):
        known: dict[str, dict[str, float]] = {}
        with suppress(OSError, ValueError):
            known = json.loads(path.read_text())
        if key not in known:
            known[key] = measure(optimizer, work)
            with suppress(OSError):
                path.write_text(json.dumps(known, indent=1))
    return known[key]["sorted"] < known[key]["fbgemm"]


class Work(NamedTuple):
    """What is measured: tables of one size, and a batch of as many bags for each of them."""

    tables: int
    rows: int
    dim: int
    bags: int
    ids: int  # of a bag


def _about(number: float) -> int:
    """The power of two near ``number``, so that similar runs share a measurement."""
    return int(2 ** round(math.log2(max(1, number))))


def measure(optimizer: EmbOptimType, work: Work) -> dict[str, float]:
    """Median milliseconds of a lookup and an update on one thread, by kernel; the kernels take turns."""
    both = {"fbgemm": _tables(optimizer, work), "sorted": _tables(optimizer, work)}
    use_sorted_updates(both["sorted"])
    generator = torch.Generator().manual_seed(0)
    drawn = work.tables * work.bags * work.ids
    offsets = torch.arange(0, drawn + 1, work.ids)
    gradient = torch.full((work.bags, work.tables * work.dim), 1e-3)
    seconds: dict[str, list[float]] = {kernel: [] for kernel in both}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(ROUNDS + 1):
            ids = torch.randint(work.rows, (drawn,), generator=generator)
            for kernel, tables in both.items():
                start = time.perf_counter()
                tables(ids, offsets).backward(gradient)
                seconds[kernel].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {kernel: 1000 * median(taken[1:]) for kernel, taken in seconds.items()}  # the first call may compile


def _tables(optimizer: EmbOptimType, work: Work) -> SplitTableBatchedEmbeddingBagsCodegen:
    specs = [(work.rows, work.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)] * work.tables
    tables = SplitTableBatchedEmbeddingBagsCodegen(specs, optimizer=optimizer, learning_rate=1e-3, eps=1e-8)
    for numbers in (tables.weights_host, tables.momentum1_host):
        numbers.detach().fill_(1e-3)  # or the first write of each page would be measured, too
    return tables


def processor() -> str:
    """The model of this machine's processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Where measurements of this machine are kept for the user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlrm_torchrec"


def _fbgemm_version() -> str:
    for name in ("fbgemm-gpu-cpu", "fbgemm-gpu"):
        with suppress(ModuleNotFoundError):
            return version(name)
    return "unknown"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes of this host out, if the folder can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    except OSError:
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
        yield
