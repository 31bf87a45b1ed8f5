"""What the drawings of a plan have in common: segments of bars, and groups and names of ranks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from dlrm_torchrec.pages.quantities import size, time
from dlrm_torchrec.sharding.cluster.rank_ranges import runs
from dlrm_torchrec.sharding.estimate.estimate import PARTS, Estimate

STAGES = {"input_dist": "input", "prefetch": "prefetch", "fwd": "forward", "bwd": "backward"}
LISTED_RUNS = 4  # runs of ranks that are listed; the other ranks are only counted

# the parts of a step in the order of a bar's segments: all compute before all comms
FAMILIES = {family: tuple(part for part in PARTS if part.endswith(f"_{family}")) for family in ("compute", "comms")}
MEMORY = {
    "weights": "weights",
    "optimizer": "optimizer state",
    "buffers": "buffers",
    "activations": "activations",
    "free": "free",
    "reserved": "reserved",
}


@dataclass(frozen=True)
class Segment:
    """A piece of a bar; ``kind`` is the CSS class of its colour."""

    kind: str
    name: str
    amount: float
    text: str


def part_name(part: str) -> str:
    """The name that people see, for example ``forward compute`` for fwd_compute."""
    stage, _, family = part.rpartition("_")
    return f"{STAGES[stage]} {family}"


def time_segments(parts: Mapping[str, float]) -> list[Segment]:
    """The milliseconds of every part of a step."""
    return [
        Segment(part, part_name(part), parts[part], str(time(parts[part])))
        for family in FAMILIES.values()
        for part in family
    ]


def memory_segments(held: Mapping[str, int]) -> list[Segment]:
    """The bytes that ``rank_memory`` returns for a rank."""
    return [Segment(kind, MEMORY[kind], count, str(size(count))) for kind, count in held.items()]


def memory_names(estimates: Sequence[Estimate]) -> dict[str, str]:
    """The kinds of bytes that estimates have, and their names: activations only if models count them."""
    counted = any(estimate.activation_bytes for estimate in estimates)
    return {kind: name for kind, name in MEMORY.items() if counted or kind != "activations"}


def alike(keys: Sequence[Hashable]) -> list[list[int]]:
    """The ranks in groups of equal keys, ordered by the first rank of each group."""
    groups: dict[Hashable, list[int]] = {}
    for rank, key in enumerate(keys):
        groups.setdefault(key, []).append(rank)
    return list(groups.values())


def ranks_text(ranks: Sequence[int]) -> str:
    """Ascending ranks as text, such as ``0-7, 16``, with an en dash.

    If there are many runs, only the first ones are listed and the other ranks are counted.
    """
    listed = runs(ranks)[:LISTED_RUNS]
    texts = [f"{first}" if first == last else f"{first}\N{EN DASH}{last}" for first, last in listed]
    more = len(ranks) - sum(last - first + 1 for first, last in listed)
    return ", ".join(texts) + (f" and {more:,} more" if more else "")
