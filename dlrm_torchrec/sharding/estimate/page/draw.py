"""Parts of a plan's page: numbers with units, bars, tables, names of ranks."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

from dlrm_torchrec.sharding.cluster.rank_ranges import runs
from dlrm_torchrec.sharding.estimate.estimate import PARTS

SIZES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
SPEEDS = ((10**9, "G rows/s"), (10**6, "M rows/s"), (10**3, "k rows/s"))
STAGES = {"input_dist": "input", "prefetch": "prefetch", "fwd": "forward", "bwd": "backward"}
LISTED_RUNS = 4  # runs of ranks that are listed; the other ranks are only counted

# the parts of a step in the order of a bar's segments: all compute before all comms
FAMILIES = {family: tuple(part for part in PARTS if part.endswith(f"_{family}")) for family in ("compute", "comms")}


def part_name(part: str) -> str:
    """The name that people see, for example ``forward compute`` for fwd_compute."""
    stage, _, family = part.rpartition("_")
    return f"{STAGES[stage]} {family}"


def size_text(count: float, digits: int = 2) -> str:
    """Bytes as text with a unit; 1 GB is 10**9 bytes."""
    return _scaled(count, SIZES, "B", digits)


def size(count: int) -> str:
    """Bytes as text with a unit, plus the exact number in an attribute for programs."""
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
    """A bar of segments, each as wide as its share of ``whole``; ``amounts`` maps a CSS class to name, amount and text.

    Screen readers skip the bar because the same numbers are next to it.
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
    """The meaning of the colours; ``kinds`` maps a CSS class to its name."""
    items = "".join(f"<li>{swatch(kind)}{name}</li>" for kind, name in kinds.items())
    return f'<ul class="legend">{items}</ul>'


def table(head: str, rows: str, caption: str, *, kind: str, seen: bool = True) -> str:
    """A table of HTML rows; if it is wider than the page, it scrolls by itself, also with the keyboard."""
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table class="{kind}">'
        f"<caption{'' if seen else ' class=unseen'}>{caption}</caption><thead>{head}</thead><tbody>{rows}</tbody>"
        "</table></div>"
    )


def columns(*names: str) -> str:
    return "".join(f'<th scope="col">{name}</th>' for name in names)


def scale(whole: str, attributes: str = "") -> str:
    """The head of a column of bars, which shows the values of their two ends."""
    return (
        f'<th scope="col" class="drawn"{attributes}><span class="ends"><span>0</span><span>{whole}</span></span></th>'
    )


def cells(contents: Iterable[str]) -> str:
    return "".join(f"<td>{content}</td>" for content in contents)


def alike(keys: Sequence[Hashable]) -> list[list[int]]:
    """The ranks in groups of equal keys, ordered by the first rank of each group."""
    groups: dict[Hashable, list[int]] = {}
    for rank, key in enumerate(keys):
        groups.setdefault(key, []).append(rank)
    return list(groups.values())


def ranks_text(ranks: Sequence[int]) -> str:
    """Ascending ranks as text, such as ``0-7, 16``, with the dash as an HTML entity.

    If there are many runs, only the first ones are listed and the other ranks are counted.
    """
    listed = runs(ranks)[:LISTED_RUNS]
    texts = [f"{first}" if first == last else f"{first}&ndash;{last}" for first, last in listed]
    more = len(ranks) - sum(last - first + 1 for first, last in listed)
    return ", ".join(texts) + (f" and {more:,} more" if more else "")
