"""This process's place among the ranks: process groups, device and seeds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256

import torch
import torch.distributed as dist

from dlrm_torchrec.terminal.quiet import quiet_libraries
from dlrm_torchrec.train.processes.launcher import end_with_launcher
from dlrm_torchrec.train.processes.lock import mark_stopping
from dlrm_torchrec.train.processes.rendezvous import attempt_store


@dataclass(frozen=True)
class World:
    """This process's place among all processes of the run."""

    rank: int  # 0..size-1
    size: int
    local_size: int  # ranks on this host
    device: torch.device
    control: dist.ProcessGroup  # gloo on every machine; it carries flags, metrics and checkpoint plans
    at_end: ExitStack = field(default_factory=ExitStack, compare=False)  # what is undone when the run ends or fails

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device_group(self) -> dist.ProcessGroup:
        """The ranks, for tensors on their devices: NCCL's group on GPUs, and ``control`` on CPUs."""
        if self.device.type == "cpu":
            return self.control
        assert dist.group.WORLD is not None
        return dist.group.WORLD

    @property
    def local_rank(self) -> int:
        """The place among the ranks on this host, 0..local_size-1."""
        return self.rank % self.local_size

    @property
    def needs_ddp(self) -> bool:
        """Whether to wrap dense parts in DDP; on a single CPU rank DDP only costs time."""
        return self.size > 1 or self.device.type == "cuda"

    def seed_step(self, seed: int, step: int) -> None:
        """Let what the model draws at a step, such as dropout, follow from the seed, the step and this rank alone.

        A resumed run then draws what the undisturbed one does.
        """
        torch.manual_seed(int.from_bytes(sha256(f"{seed} {step} {self.rank}".encode()).digest()[:8]))


@contextmanager
def join_world(seed: int, timeout_s: float = 600) -> Iterator[World]:
    """The world that torchrun or TorchX started, or a world of one rank when the script was started by hand.

    Every rank has the same seed for dense weights; ``initialize_tables`` initialises tables. A rank whose torchrun is
    gone gets SIGTERM.
    """
    quiet_libraries()
    with ExitStack() as at_end:
        at_end.callback(end_with_launcher(mark_stopping))
        yield _join(seed, timedelta(seconds=timeout_s), at_end)


def _join(seed: int, timeout: timedelta, at_end: ExitStack) -> World:
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", size))
    cuda = torch.cuda.is_available()
    if cuda and local_size > torch.cuda.device_count():
        raise ValueError(
            f"ranks per host must not exceed its GPUs: got {local_size} ranks for {torch.cuda.device_count()} GPUs; "
            "lower --nproc_per_node, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on CPU"
        )
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "nccl" if cuda else "gloo"
    if "WORLD_SIZE" in os.environ:
        agents_store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        store = attempt_store(agents_store, rank, size, timeout)
    else:
        store = dist.HashStore()
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    at_end.callback(dist.destroy_process_group)
    torch.manual_seed(seed)
    control = dist.new_group(backend="gloo", timeout=timeout)
    return World(rank=rank, size=size, local_size=local_size, device=device, control=control, at_end=at_end)
