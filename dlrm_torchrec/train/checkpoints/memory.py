"""How much memory is left on this host, by what Linux says, and whether copies of a run's tensors fit in."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torchrec.distributed.types import ShardedTensor

from dlrm_torchrec.train.checkpoints.reports import Say

_PROC, _CONTROL_GROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available_bytes(proc: Path = _PROC, control_group: Path = _CONTROL_GROUP) -> int | None:
    """Bytes that can still be allocated, within the limit of a container; None where Linux does not say."""
    try:
        host = re.search(r"MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text())
    except OSError:
        return None
    if host is None:
        return None
    available = int(host[1]) * 1024
    try:
        limit = (control_group / "memory.max").read_text().strip()
        used = int((control_group / "memory.current").read_text())
        cache = re.search(r"^inactive_file (\d+)$", (control_group / "memory.stat").read_text(), re.MULTILINE)
    except OSError:  # not in a container
        return available
    if limit == "max":
        return available
    return max(0, min(available, int(limit) - used + (int(cache[1]) if cache else 0)))


def resident_bytes(proc: Path = _PROC) -> int:
    """Bytes of memory that this process holds; 0 where Linux does not say."""
    try:
        pages = (proc / "self" / "statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class _Need(NamedTuple):
    """What one rank needs, in bytes."""

    host: str
    copies: int  # of its tensors, on any device, in the host's memory
    unwritten: int  # tables that nobody has written yet take no memory, but they will


def refuse_copies_without_memory(state: dict[str, dict[str, Any]], group: dist.ProcessGroup, say: Say) -> None:
    """Say what an asynchronous save of ``state`` needs on this host; ValueError on all ranks when one lacks it."""
    pieces = [piece for part in state.values() for value in part.values() for piece in _local(value)]
    resident = sum(piece.nbytes for piece in pieces if piece.device.type == "cpu")
    own = _Need(socket.gethostname(), sum(piece.nbytes for piece in pieces), max(0, resident - resident_bytes()))
    needs = _gather(own, group)
    here = [need for need in needs if need.host == own.host]
    available = available_bytes()
    copies, left = sum(need.copies for need in here), None
    if available is not None:
        left = max(0, available - sum(need.unwritten for need in here))
    for need, needed, found in _gather((own, copies, left), group):
        if found is not None and found < needed:
            raise ValueError(
                f"memory for asynchronous checkpoints must hold a copy of what the ranks of {need.host} save, "
                f"{needed / 1e9:.1f} GB: got {found / 1e9:.1f} GB; leave out --checkpoint.asynchronous"
            )
    found = "" if left is None else f" of the {left / 1e9:.1f} GB that are available"
    say(f"an asynchronous checkpoint copies what the ranks of {own.host} save: {copies / 1e9:.1f} GB{found}")


def _gather(value: Any, group: dist.ProcessGroup) -> list[Any]:
    """The value of every rank."""
    values = [value] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def _local(value: Any) -> Iterator[torch.Tensor]:
    """The pieces of a tensor that this rank holds."""
    if isinstance(value, ShardedTensor):
        yield from (shard.tensor for shard in value.local_shards())
    elif isinstance(value, DTensor):
        local: Any = value.to_local()
        yield from local.local_shards() if hasattr(local, "local_shards") else [local]
    else:
        yield value
