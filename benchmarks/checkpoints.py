"""What a checkpoint costs: memory and seconds of saving, seconds of loading, and the speed of its verification.

    OMP_NUM_THREADS=1 python benchmarks/checkpoints.py --gigabytes 8 --folder /mnt/disk

One process trains four tables of one kernel with SGD, saves them and loads them again, while another thread samples its
resident memory. Memory is a ratio to that of training. Saving is a ratio to the seconds of writing as many bytes to the
same disk in slices, with one fsync. Loading and verification read from the page cache as far as it goes.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.folder import check
from dlrm_torchrec.train.checkpoints.memory import resident_bytes
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.config import CheckpointConfig, OptimizerConfig
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.world import join_world

NAMES = ("a", "b", "c", "d")
DIM = 64
SLICE = memoryview(bytes(1 << 24))


def peak_bytes(work: Callable[[], object]) -> tuple[int, float]:
    """The most resident memory during ``work``, sampled every 5 ms, and its seconds."""
    done, seen = threading.Event(), [resident_bytes()]

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(resident_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    return max(seen), seconds


def plain_write_s(path: Path, num_bytes: int) -> float:
    """Seconds of writing ``num_bytes`` zeros to a file, until they are on the disk."""
    start = time.perf_counter()
    with path.open("wb", buffering=0) as stream:
        for _ in range(num_bytes // len(SLICE)):
            stream.write(SLICE)
        os.fsync(stream.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def main(gigabytes: float = 2, folder: str = "", rounds: int = 3) -> None:
    rows = int(gigabytes * 1e9) // 4 // DIM // len(NAMES)
    work = Path(tempfile.mkdtemp(dir=folder or None))
    try:
        with join_world(0) as world:
            configs = [
                EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=DIM, feature_names=[name])
                for name in NAMES
            ]
            tables = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
            sgd = OptimizerConfig(kind="sgd", lr=0.1)
            optimize_tables_in_backward(tables, sgd)
            model = DistributedModelParallel(
                nn.ModuleDict({"tables": tables, "dense": nn.Linear(DIM * len(NAMES), 1)}), device=world.device
            )
            optimizer = build_optimizer(model, sgd, sgd)
            ids = KeyedJaggedTensor.from_lengths_sync(
                list(NAMES), torch.arange(4096), torch.ones(4096, dtype=torch.int32)
            )

            def train() -> None:
                for _ in range(5):
                    model.module.dense(model.module.tables(ids).values()).sum().backward()

            training, _ = peak_bytes(train)
            num_bytes = len(NAMES) * rows * DIM * 4
            saving, loading, ratios, load_s, verify_s = [], [], [], [], []
            for step in range(1, rounds + 1):
                checkpoints = Checkpoints(str(work), CheckpointConfig(keep=1), world)
                plain_s = plain_write_s(work / "plain", num_bytes)
                progress = Progress(identity={}, lanes=1, step=step)
                peak, seconds = peak_bytes(lambda: checkpoints.save(model, optimizer, progress))  # noqa: B023  # runs now
                saving.append(peak / training)
                ratios.append(seconds / plain_s)
                again = Checkpoints(str(work), CheckpointConfig(), world, say=lambda _: None)
                peak, seconds = peak_bytes(lambda: again.load(model, optimizer, {}))  # noqa: B023  # runs now
                loading.append(peak / training)
                load_s.append(seconds)
                _, seconds = peak_bytes(lambda: check(f"{work}/step-{step:08d}"))  # noqa: B023  # runs now
                verify_s.append(num_bytes / seconds / 1e9)
                print(f"wrote as many bytes plainly at {num_bytes / plain_s / 1e9:.2f} GB/s")
    finally:
        shutil.rmtree(work)
    print(f"tables: {num_bytes / 1e9:.1f} GB; resident while training: {training / 1e9:.1f} GB")
    print(f"peak memory of saving over training: {max(saving):.2f} (goal: at most 1.1)")
    print(f"peak memory of loading over training: {max(loading):.2f}")
    print(f"seconds of saving over those of writing as many bytes plainly: {statistics.median(ratios):.2f}")
    print(f"seconds of loading, with verification: {statistics.median(load_s):.1f}")
    print(f"verification: {statistics.median(verify_s):.1f} GB/s")


if __name__ == "__main__":
    tyro.cli(main)
