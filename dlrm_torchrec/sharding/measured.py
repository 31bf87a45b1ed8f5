"""Compares the timed steps of a run with its plan, and writes a topology file that would have predicted them.

    python recipes/train_dlrm.py --plan plan.json --log.timed 50 100
    python -m dlrm_torchrec.sharding.measured runs/train_dlrm/demo/step_times.json plan.json --output measured.toml
    python recipes/plan_sharding.py train_dlrm --topology measured.toml

Times are medians of steps in which nothing overlaps. A bandwidth that is measured this way includes every other cost of
its part, such as the start of a collective, so it is valid only for plans and batch sizes close to the measured ones.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from iopath.common.file_io import g_pathmgr
from tyro.conf import Positional

from dlrm_torchrec.sharding.cluster.topology import FIELDS, Cluster, parse_cluster
from dlrm_torchrec.sharding.estimate.correction import TIMED, Correction, correct, tables_milliseconds, to_toml
from dlrm_torchrec.sharding.estimate.estimate import Estimate, TableEstimate, estimate_of

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measurements of a run with ``--log.timed``."""

    device: str
    batch_size: int  # rows per rank
    steps: tuple[int, int]  # the first and the last timed step
    plan: dict[str, Any]  # by table, as in checkpoints
    ranks: tuple[dict[str, Any], ...]  # milliseconds by part, and bytes

    @property
    def milliseconds(self) -> list[dict[str, float]]:
        return [rank["milliseconds"] for rank in self.ranks]


def read_measured(path: str) -> Measured:
    """The contents of a run's ``step_times.json``; raises ValueError when the file has another version."""
    with g_pathmgr.open(path, "r") as stream:
        record = json.load(stream)
    if record.get("version") != VERSION:
        raise ValueError(
            f"step times {path} must have version {VERSION}: got {record.get('version')!r}; "
            "time the run again with this release"
        )
    return Measured(
        device=record["device"],
        batch_size=record["batch_size"],
        steps=tuple(record["steps"]),
        plan=record["plan"],
        ranks=tuple(record["ranks"]),
    )


def check_same_plan(measured: Measured, estimate: Estimate, cluster: Cluster) -> None:
    """Raises ValueError when ``estimate`` is not for the plan that ran, or not for ``cluster``."""
    devices = cluster.topology().devices
    for what, ran, planned in (
        ("rows per rank", measured.batch_size, estimate.batch_size),
        ("tables", sorted(measured.plan), sorted(table.name for table in estimate.tables)),
        *((f"shards of {table.name!r}", measured.plan.get(table.name), _cut(table)) for table in estimate.tables),
    ):
        if ran != planned:
            raise ValueError(
                f"{what} of the plan must equal those of the timed run, {ran}: got {planned}; "
                "time a run that trains with --plan and this plan.json"
            )
    capacities = tuple((device.storage.hbm, device.storage.ddr) for device in devices)
    if capacities != tuple(zip(estimate.hbm_capacity, estimate.ddr_capacity, strict=True)):
        raise ValueError(
            f"topology must be that of the plan, {estimate.topology!r}: got {cluster}, with other ranks or memory; "
            "name the plan's topology, or plan again"
        )


def _cut(table: TableEstimate) -> dict[str, Any]:
    """A table of a plan in the form of checkpoints, where a replica has no offset and no size."""
    whole = table.sharding_type == "data_parallel"
    return {
        "sharding_type": table.sharding_type,
        "compute_kernel": table.compute_kernel,
        "shards": [
            {
                "rank": shard.rank,
                "offset": [0, 0] if whole else list(shard.offset),
                "size": [] if whole else list(shard.size),
            }
            for shard in table.shards
        ],
    }


def describe(measured: Measured, estimate: Estimate) -> str:
    """Planned and measured milliseconds of each part on each rank, and bytes, as tables for a terminal."""
    first, last = measured.steps
    lines = [
        f"steps {first} to {last} on {measured.device}, {measured.batch_size} rows per rank, planned for "
        f"{estimate.topology}",
        f"{'rank':>4}  {'part':<16}  {'planned ms':>10}  {'measured ms':>11}  {'ratio':>8}",
    ]
    for rank, (planned, parts) in enumerate(zip(estimate.rank_milliseconds(), measured.milliseconds, strict=True)):
        spent = tables_milliseconds(parts)
        planned = {**planned, "fwd_compute": planned["fwd_compute"] + planned["prefetch_compute"]}
        rows = {name: (planned[name], spent[name]) for name in TIMED}
        rows["tables"] = (sum(planned[name] for name in TIMED), sum(spent.values()))
        lines += [f"{rank:>4}  {name:<16}  {_beside(*row)}" for name, row in rows.items()]
        timed = {part for names in TIMED.values() for part in names}
        rest = [f"{part} {ms:.3f}" for part, ms in parts.items() if part not in timed]
        lines.append(f"      not planned: {', '.join(rest)}")
    lines.append(f"{'rank':>4}  {'bytes of':<16}  {'planned':>15}  {'held':>15}")
    for rank, held in enumerate(measured.ranks):
        shards = estimate.shards_of(rank)
        for name, field in (("weights", "weight_bytes"), ("moments", "optimizer_bytes")):
            lines.append(
                f"{rank:>4}  {name:<16}  {sum(getattr(shard, field) for shard in shards):>15,}  {held[field]:>15,}"
            )
        if held["peak_device_bytes"] is not None:
            most = estimate.rank_bytes("hbm")[rank] + estimate.hbm_reserved[rank]
            lines.append(f"{rank:>4}  {'device, at most':<16}  {most:>15,}  {held['peak_device_bytes']:>15,}")
    return "\n".join(lines)


def _beside(planned: float, measured: float) -> str:
    ratio = f"{measured / planned:>8.2f}" if planned else f"{'-':>8}"
    return f"{planned:>10.3f}  {measured:>11.3f}  {ratio}"


def describe_correction(correction: Correction, cluster: Cluster) -> str:
    """The corrected lines of a topology file, with a comment that says how they were found."""
    lines = [
        f"{key} = {correction.fields[field]:.4g}  # was {getattr(cluster.machine, field):.4g}"
        for key, field in FIELDS.items()
        if field in correction.fields
    ]
    if correction.is_one_factor:
        lines.append(
            "# one factor for all: with the factor of lookups alone, TorchRec's copies in memory would take longer "
            "than the whole measured step"
        )
    elif {"inter_host_bandwidth", "intra_host_bandwidth"} <= correction.fields.keys():
        lines.append("# one factor for sending within and between hosts: the timed parts cannot separate the two")
    return "\n".join(lines)


def main(step_times: Positional[str], plan: Positional[str], topology: str = "", output: str = "") -> None:
    """Print planned and measured times and bytes, and the corrected bandwidths.

    Args:
        step_times: the step_times.json that a run with --log.timed wrote
        plan: the plan.json that the run was trained with
        topology: the topology of the plan; needed if plan.json holds several plans for this number of ranks, or if the
            topology file was moved
        output: the topology file to write; empty writes none
    """
    measured = read_measured(step_times)
    estimate = estimate_of(plan, len(measured.ranks), topology)
    cluster = parse_cluster(topology or estimate.topology)
    check_same_plan(measured, estimate, cluster)
    print(describe(measured, estimate))
    correction = correct(estimate, cluster, measured.milliseconds)
    print(f"\ncorrected bandwidths\n{describe_correction(correction, cluster)}")
    if output:
        source = f"measured by {step_times} on {measured.device}; other figures: {cluster.machine.source}"
        Path(output).write_text(to_toml(correction.apply(cluster, source)))
        print(f"written to {output}; plan with --topology {output}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
