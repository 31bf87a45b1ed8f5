"""The machine a plan is made for."""

from __future__ import annotations

import os

import torch
from torchrec.distributed.planner import Topology


def live_topology(world_size: int, local_size: int, device: torch.device) -> Topology:
    """The machine we are on: its real memory per rank, TorchRec's default bandwidths."""
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Topology(
        world_size=world_size,
        local_world_size=local_size,
        compute_device=device.type,
        hbm_cap=torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        ddr_cap=host_bytes // local_size,
    )
