"""Pieces of the page of a plan: numbers with units, bars, tables, names of ranks."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

from dlrm_torchrec.sharding.cluster.rank_ranges import runs
from dlrm_torchrec.sharding.estimate.estimate import PARTS

SIZES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
SPEEDS = ((10**9, "G rows/s"), (10**6, "M rows/s"), (10**3, "k rows/s"))
STAGES = {"input_dist": "input", "prefetch": "prefetch", "fwd": "forward", "bwd": "backward"}
LISTED_RUNS = 4  # of ranks, before the others are only counted

# the parts of a step, as bars stack them: all compute before all comms
FAMILIES = {family: tuple(part for part in PARTS if part.endswith(f"_{family}")) for family in ("compute", "comms")}


def part_name(part: str) -> str:
    """``forward compute`` for fwd_compute."""
    stage, _, family = part.rpartition("_")
    return f"{STAGES[stage]} {family}"


def size_text(count: float, digits: int = 2) -> str:
    """Bytes for people, a GB being 10**9 of them."""
    return _scaled(count, SIZES, "B", digits)


def size(count: int) -> str:
    """Bytes for people, with the exact number for programs."""
    return _quantity(count, size_text(count))


def speed(rows_per_second: float) -> str:
    return _quantity(rows_per_second, _scaled(rows_per_second, SPEEDS, "rows/s", 2))


def time(milliseconds: float, digits: int = 3) -> str:
    return _quantity(milliseconds, f"{milliseconds:,.{digits}f} ms")


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}&nbsp;%"


def _scaled(value: float, units: Sequence[tuple[int, str]], smallest: str, digits: int) -> str:
    for scale, unit in units:
        if value >= scale:
            return f"{value / scale:,.{digits}f} {unit}"
    return f"{value:,.0f} {smallest}"


def _quantity(value: float, shown: str) -> str:
    number, _, unit = shown.partition(" ")
    return f'<data value="{value!r}">{number}&nbsp;<span class="unit">{unit}</span></data>'


def bar(amounts: Mapping[str, tuple[str, float, str]], whole: float) -> str:
    """Segments side by side, as wide as their shares of ``whole``: for each class of the style, name, amount and text.

    The same numbers stand beside every bar, so that screen readers pass it over.
    """
    segments = "".join(
        f'<span class="{kind}" style="width:{100 * amount / whole:.4g}%" title="{name} {text}"></span>'
        for kind, (name, amount, text) in amounts.items()
        if amount > 0
    )
    return f'<div class="bar" aria-hidden="true">{segments}</div>'


def time_bar(parts: Mapping[str, float], whole: float) -> str:
    """A bar of the milliseconds of every part of a step."""
    return bar(
        {
            part: (part_name(part), parts[part], f"{parts[part]:.3f} ms")
            for family in FAMILIES.values()
            for part in family
        },
        whole,
    )


def swatch(kind: str) -> str:
    return f'<span class="swatch {kind}"></span>'


def legend(kinds: Mapping[str, str]) -> str:
    """What the colours mean: a name for each class of the style."""
    items = "".join(f"<li>{swatch(kind)}{name}</li>" for kind, name in kinds.items())
    return f'<ul class="legend">{items}</ul>'


def table(head: str, rows: str, caption: str, *, kind: str, seen: bool = True) -> str:
    """A table of HTML rows, scrolled by itself where it is wider than the page, also with the keyboard."""
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table class="{kind}">'
        f"<caption{'' if seen else ' class=unseen'}>{caption}</caption><thead>{head}</thead><tbody>{rows}</tbody>"
        "</table></div>"
    )


def columns(*names: str) -> str:
    return "".join(f'<th scope="col">{name}</th>' for name in names)


def scale(whole: str, attributes: str = "") -> str:
    """The head of a column of bars: what their two ends mean."""
    return (
        f'<th scope="col" class="drawn"{attributes}><span class="ends"><span>0</span><span>{whole}</span></span></th>'
    )


def cells(contents: Iterable[str]) -> str:
    return "".join(f"<td>{content}</td>" for content in contents)


def alike(keys: Sequence[Hashable]) -> list[list[int]]:
    """The ranks in groups of equal keys, in the order of their first ones."""
    groups: dict[Hashable, list[int]] = {}
    for rank, key in enumerate(keys):
        groups.setdefault(key, []).append(rank)
    return list(groups.values())


def ranks_text(ranks: Sequence[int]) -> str:
    """``0-7, 16``, the dash as an entity, for ranks that ascend; of many runs the first, and how many ranks more."""
    listed = runs(ranks)[:LISTED_RUNS]
    texts = [f"{first}" if first == last else f"{first}&ndash;{last}" for first, last in listed]
    more = len(ranks) - sum(last - first + 1 for first, last in listed)
    return ", ".join(texts) + (f" and {more:,} more" if more else "")
