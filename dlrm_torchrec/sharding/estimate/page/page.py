"""Estimates as a web page: memory and time of every rank, the ranks of every table, and the ways considered."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dlrm_torchrec.sharding.estimate.estimate import Estimate
from dlrm_torchrec.sharding.estimate.page.draw import cells, columns, size, speed, swatch, table, time, time_bar
from dlrm_torchrec.sharding.estimate.page.ranks import (
    MEMORIES,
    critical_section,
    memories,
    memory_bar,
    memory_section,
    rank_memory,
    time_section,
)
from dlrm_torchrec.sharding.estimate.page.style import STYLE
from dlrm_torchrec.sharding.estimate.page.tables import placement_section


def page(estimates: Sequence[Estimate], title: str) -> str:
    """One HTML document without other files or scripts: a comparison of the estimates, then a section for each."""
    sections = [_topology(number, estimate) for number, estimate in enumerate(estimates)]
    if len(estimates) > 1:
        sections.insert(0, _comparison(estimates))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="eyebrow">Sharding plan</p><h1>{escape(title)}</h1>'
        '<p class="lede">TorchRec&rsquo;s planner estimates the embedding tables&rsquo; part of a training step. Dense '
        "layers and reading data are not included, and nothing was measured. 1 GB is 10<sup>9</sup> bytes.</p>"
        "</header>\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )


def _topology(number: int, estimate: Estimate) -> str:
    return (
        f'<section id="plan-{number}" aria-labelledby="plan-{number}-name">'
        f'<h2 id="plan-{number}-name">{escape(estimate.topology)}</h2>'
        f'<p class="lede">For steps of {estimate.batch_size:,} rows per rank.</p>{_figures(estimate)}\n'
        + "\n".join(memory_section(estimate, memory) for memory in memories(estimate))
        + f"\n{time_section(estimate)}\n{critical_section(estimate)}\n{placement_section(estimate)}</section>"
    )


def _figures(estimate: Estimate) -> str:
    memory, rank, held = _fullest(estimate)
    total = sum(sum(estimate.rank_bytes(each)) for each in MEMORIES)
    figures = {
        "Ranks": (f"{estimate.world_size:,}", f"for {len(estimate.tables):,} tables of {size(total)} in total"),
        f"Fullest rank, {MEMORIES[memory]}": (size(_used(held)), f"rank {rank}, of {size(_usable(held))} usable"),
        "Slowest rank": (time(sum(_slowest(estimate).values())), f"rank {estimate.critical_rank()}, per step"),
        "Speed of tables": (speed(_rows_per_second(estimate)), "if no other part of a step is slower"),
    }
    items = "".join(
        f'<div><dt>{name}</dt><dd>{number}</dd><dd class="note">{note}</dd></div>'
        for name, (number, note) in figures.items()
    )
    return f'<dl class="figures">{items}</dl>'


def _comparison(estimates: Sequence[Estimate]) -> str:
    longest = max(sum(_slowest(estimate).values()) for estimate in estimates)
    rows = ""
    for number, estimate in enumerate(estimates):
        parts, (memory, _, held) = _slowest(estimate), _fullest(estimate)
        contents = [
            time_bar(parts, longest),
            time(sum(parts.values())),
            speed(_rows_per_second(estimate)),
            memory_bar(held, sum(held.values())),
            size(_used(held)),
            f"{size(_usable(held))} {MEMORIES[memory]}",
            f"{estimate.world_size:,}",
            f"{estimate.batch_size:,}",
        ]
        name = f'<th scope="row"><a href="#plan-{number}">{escape(estimate.topology)}</a></th>'
        rows += f"<tr>{name}{cells(contents)}</tr>"
    above = "".join(f'<th scope="colgroup" colspan="3">{name}</th>' for name in ("Slowest rank", "Fullest rank"))
    below = columns(
        *(f"{swatch('fwd_compute')}compute {swatch('fwd_comms')}comms", "Step", "Speed of tables"),
        *(f"{swatch('weights')}tables {swatch('reserved')}reserved", "Tables", "Usable"),
    )
    alone = [f'<th scope="col" rowspan="2">{name}</th>' for name in ("Topology", "Ranks", "Rows per rank")]
    head = f"<tr>{alone[0]}{above}{alone[1]}{alone[2]}</tr><tr>{below}</tr>"
    compared = table(head, rows, "The slowest and the fullest rank of every topology", kind="compared", seen=False)
    return (
        '<section aria-labelledby="comparison"><h2 id="comparison">Topologies compared</h2>' + compared + "</section>"
    )


def _slowest(estimate: Estimate) -> dict[str, float]:
    """Milliseconds by part of the rank that the others wait for."""
    return estimate.rank_milliseconds()[estimate.critical_rank()]


def _fullest(estimate: Estimate) -> tuple[str, int, dict[str, int]]:
    """The memory that holds the tables, its fullest rank, and the bytes that this rank holds by kind."""
    memory = memories(estimate)[0]
    used = estimate.rank_bytes(memory)
    rank = used.index(max(used))
    return memory, rank, rank_memory(estimate, memory)[rank]


def _used(held: dict[str, int]) -> int:
    return held["weights"] + held["optimizer"] + held["buffers"]


def _usable(held: dict[str, int]) -> int:
    return _used(held) + held["free"]


def _rows_per_second(estimate: Estimate) -> float:
    return 1e3 * estimate.batch_size * estimate.world_size / sum(_slowest(estimate).values())
