"""The page of a plan, parsed again: its numbers, the lengths of its bars, and that it needs no other file."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest

from dlrm_torchrec.sharding.estimate.estimate import PARTS, Estimate
from dlrm_torchrec.sharding.estimate.page.page import page
from tests.pages.elements import Element, Tree
from tests.sharding.estimate.estimates import made_up_estimate

NAMES = [f"t_{number}" for number in range(12)]
KINDS = ("weights", "optimizer", "buffers", "activations", "free", "reserved")
COMPUTE = ("prefetch_compute", "fwd_compute", "bwd_compute")
COMMS = ("input_dist_comms", "fwd_comms", "bwd_comms")


def read(*estimates: Estimate, title: str = "made up") -> Element:
    return Tree(page(estimates, title)).root


def section(root: Element, number: int = 0) -> dict[str, list[Element]]:
    """The elements below each h3 of a topology's section."""
    (found,) = [each for each in root.all("section") if each.attributes.get("id") == f"plan-{number}"]
    parts: dict[str, list[Element]] = {}
    for child in found.children:
        if isinstance(child, Element):
            if child.tag == "h3":
                parts[child.text] = []
            elif parts:
                parts[[*parts][-1]].append(child)
    return parts


def ranks_in(text: str) -> list[int]:
    """The ranks of ``0-3, 7`` with an en dash."""
    found: list[int] = []
    for piece in text.split(", "):
        first, _, last = piece.partition("\N{EN DASH}")
        found += range(int(first), int(last or first) + 1)
    return found


def rank_rows(elements: list[Element]) -> dict[int, Element]:
    """The row of every rank in the last table, which shows all ranks."""
    body = [table for element in elements for table in element.all("table")][-1].all("tbody")[0]
    return {rank: row for row in body.all("tr") for rank in ranks_in(re.split(r" [a-z]", row.all("th")[0].text)[0])}


def held(estimate: Estimate, memory: str) -> list[dict[str, int]]:
    """Bytes of every rank by what they are, one shard at a time; activations if the model counts them."""
    ranks = [dict.fromkeys(KINDS, 0) for _ in range(estimate.world_size)]
    for table in estimate.tables:
        for shard in table.shards:
            rank, here = ranks[shard.rank], shard.hbm_bytes if memory == "hbm" else shard.ddr_bytes
            lies_on_host = "uvm" in table.compute_kernel or not any(estimate.hbm_capacity)
            of_table = shard.weight_bytes + shard.optimizer_bytes if lies_on_host == (memory == "ddr") else 0
            if of_table:
                rank["weights"] += shard.weight_bytes
                rank["optimizer"] += shard.optimizer_bytes
            rank["buffers"] += here - of_table
    for number, rank in enumerate(ranks):
        in_it = (memory == "hbm") == any(estimate.hbm_capacity)
        rank["activations"] = estimate.activation_bytes if in_it else 0
        rank["reserved"] = getattr(estimate, f"{memory}_reserved")[number] - rank["activations"]
        rank["free"] = getattr(estimate, f"{memory}_capacity")[number] - sum(rank.values())
        if not estimate.activation_bytes:
            del rank["activations"]
    return ranks


def segments(bar: Element) -> dict[str, float]:
    """Class and percentage of every piece of a bar."""
    return {" ".join(each.classes): each.styled("width") for each in bar.all("span")}


@pytest.mark.parametrize(
    ("made_up", "drawn"),
    [
        (made_up_estimate(8, NAMES), ["hbm"]),
        (made_up_estimate(1, NAMES), ["hbm"]),
        (made_up_estimate(4, NAMES, devices=False), ["ddr"]),
        (made_up_estimate(6, NAMES, offloaded=True), ["hbm", "ddr"]),
        (made_up_estimate(40, NAMES), ["hbm"]),
        (made_up_estimate(64, NAMES[:3], distinct=False), ["hbm"]),
        (replace(made_up_estimate(5, NAMES, offloaded=True), activation_bytes=7 * 10**9), ["hbm", "ddr"]),
        (replace(made_up_estimate(3, NAMES, devices=False), activation_bytes=7 * 10**9), ["ddr"]),
    ],
    ids=["devices", "one rank", "hosts", "offloaded", "unfolded", "alike", "activations", "activations on hosts"],
)
def test_memory_per_rank(made_up: Estimate, drawn: list[str]) -> None:
    parts = section(read(made_up))
    assert [name for name in parts if name.endswith(("HBM per rank", "DDR per rank"))] == [
        f"{memory.upper()} per rank" for memory in drawn
    ]
    for memory in drawn:
        expected, rows = held(made_up, memory), rank_rows(parts[f"{memory.upper()} per rank"])
        assert sorted(rows) == list(range(made_up.world_size))
        capacity = getattr(made_up, f"{memory}_capacity")[0]
        for rank, row in rows.items():
            used = sum(expected[rank][kind] for kind in KINDS[:3])
            assert row.values() == pytest.approx([used, *expected[rank].values()], rel=5e-3, abs=100)
            lengths = segments(row.all("div", "bar")[0])
            assert sum(lengths.values()) == pytest.approx(100, abs=0.1)
            assert lengths == pytest.approx(
                {kind: 100 * count / capacity for kind, count in expected[rank].items() if count}, rel=5e-3, abs=0.01
            )
        used_bytes = [sum(rank[kind] for kind in KINDS[:3]) for rank in expected]
        marked = {rank for rank, row in rows.items() if "fullest" in row.text}
        assert used_bytes.index(max(used_bytes)) in marked
        assert {f"{used_bytes[rank] / 1e9:.2f}" for rank in marked} == {f"{max(used_bytes) / 1e9:.2f}"}


@pytest.mark.parametrize("world_size", [1, 8, 40])
def test_time_per_rank(world_size: int) -> None:
    made_up = made_up_estimate(world_size, NAMES)
    rows = rank_rows(section(read(made_up))["Time per rank"])
    assert sorted(rows) == list(range(world_size))
    expected = [dict.fromkeys(PARTS, 0.0) for _ in range(world_size)]
    for table in made_up.tables:
        for shard in table.shards:
            for part in PARTS:
                expected[shard.rank][part] += shard.milliseconds[part]
    sums = [sum(rank.values()) for rank in expected]
    for rank, row in rows.items():
        in_order = [expected[rank][part] for part in (*COMPUTE, *COMMS)]
        assert row.values() == pytest.approx([sums[rank], *in_order], abs=1e-3)
        widths = segments(row.all("div", "bar")[0])
        assert [*widths] == [*COMPUTE, *COMMS]
        assert [*widths.values()] == pytest.approx([100 * part / max(sums) for part in in_order], rel=2e-3)
    assert {rank for rank, row in rows.items() if "slowest" in row.text} == {sums.index(max(sums))}


def test_a_part_that_takes_no_time_is_left_out() -> None:
    made_up = made_up_estimate(2, NAMES)
    for table in made_up.tables:
        for shard in table.shards:
            shard.milliseconds["prefetch_compute"] = 0.0
    root = read(made_up)
    assert not [each for each in root.walk() if "prefetch_compute" in each.classes]
    assert len(rank_rows(section(root)["Time per rank"])[0].values()) == len(PARTS)


def test_the_critical_path() -> None:
    made_up = made_up_estimate(8, [f"t_{number}" for number in range(40)])
    parts = section(read(made_up))["Critical path"]
    rank = made_up.critical_rank()
    spent = made_up.rank_milliseconds()[rank]
    total, compute, comms = (sum(spent[part] for part in found) for found in (PARTS, COMPUTE, COMMS))
    assert parts[0].text.startswith(f"All ranks wait for rank {rank}: ")
    assert parts[0].values() == pytest.approx([total, compute, comms])
    assert f"compute {compute:.3f} ms ({100 * compute / total:.1f} %)" in parts[0].text
    assert f"comms {comms:.3f} ms ({100 * comms / total:.1f} %)" in parts[0].text
    assert sum(segments(parts[1].all("div", "bar")[0]).values()) == pytest.approx(100, abs=0.1)

    by_part, by_table = (table.all("tbody")[0].all("tr") for table in parts[2].all("table"))
    assert [row.values()[0] for row in by_part] == pytest.approx([spent[part] for part in (*COMPUTE, *COMMS)])
    found = {
        table.name: sum(sum(shard.milliseconds.values()) for shard in table.shards if shard.rank == rank)
        for table in made_up.tables
    }
    longest = sorted(((spent, name) for name, spent in found.items() if spent), reverse=True)
    assert [row.all("th")[0].text for row in by_table] == [
        *(name for _, name in longest[:8]),
        f"{len(longest) - 8} more",
    ]
    assert [row.values()[0] for row in by_table[:8]] == pytest.approx([spent for spent, _ in longest[:8]])
    assert sum(row.values()[0] for row in by_table) == pytest.approx(total)


def test_equally_slow_ranks_are_counted() -> None:
    made_up = made_up_estimate(6, NAMES[:1], distinct=False)  # ranks 2 and 5 take three times as long as 0 and 3
    (said, *_) = section(read(made_up))["Critical path"]
    assert said.text.startswith("All ranks wait for rank 2 (1 other takes as long): ")


@pytest.mark.parametrize("world_size", [1, 7, 64])
def test_where_every_table_lies(world_size: int) -> None:
    made_up = made_up_estimate(world_size, [f"t_{number}" for number in range(60)])
    root = read(made_up)
    rows = {row.all("span", "name")[0].text: row for row in root.all("details", "table")}
    assert len(rows) == 60
    sizes = [table.rows * table.dim for name in rows for table in made_up.tables if table.name == name]
    assert sizes == sorted(sizes, reverse=True)
    (folded,) = [each for each in root.all("details", "all") if each.all("details", "table")]
    assert folded.all("summary")[0].text.startswith("20 smaller tables, ")
    assert len(folded.all("details", "table")) == 20
    largest = max(shard.hbm_bytes + shard.ddr_bytes for table in made_up.tables for shard in table.shards)
    for table in made_up.tables:
        by_rank = [0] * world_size
        for shard in table.shards:
            by_rank[shard.rank] += shard.hbm_bytes + shard.ddr_bytes
        drawn: dict[int, int] = {}
        for block in rows[table.name].all("span", "track")[0].all("span")[1:]:
            first = round(block.styled("left") * world_size / 100)
            (shade,) = block.classes
            for rank in range(first, first + round(block.styled("width") * world_size / 100)):
                assert rank not in drawn
                drawn[rank] = int(shade.removeprefix("shade-"))
        assert drawn == {
            rank: min(4, len(str(largest)) - len(str(count))) for rank, count in enumerate(by_rank) if count
        }
        summary = rows[table.name].all("summary")[0]
        assert summary.all("span", "bytes")[0].values() == [max(by_rank)]
        assert summary.all("span", "sharding")[0].text == table.sharding_type
        if "more" not in summary.all("span", "ranks")[0].text:
            assert ranks_in(re.sub(r"^[a-z ]+", "", summary.all("span", "ranks")[0].text)) == sorted(drawn)


def test_the_numbers_of_a_table_and_the_ways_considered() -> None:
    made_up = made_up_estimate(8, NAMES, offloaded=True)
    rows = {row.all("span", "name")[0].text: row for row in read(made_up).all("details", "table")}
    for table in made_up.tables:
        opened = rows[table.name].all("div", "opened")[0]
        facts = {item.all("dt")[0].text: item.all("dd")[0] for item in opened.all("dl")[0].all("div")}
        assert facts["Rows \N{MULTIPLICATION SIGN} dim"].text == f"{table.rows:,} \N{MULTIPLICATION SIGN} {table.dim}"
        listed = ", ".join(f"{factor:g}" for factor in table.pooling_factors[:8])
        more = len(table.pooling_factors) - 8
        assert facts["Rows per bag"].text == listed + (f" and {more} more features" if more > 0 else "")
        assert facts["Weights"].values() == [sum(shard.weight_bytes for shard in table.shards)]
        assert facts["Optimizer state"].values() == [sum(shard.optimizer_bytes for shard in table.shards)]
        assert facts["In HBM"].values() == [sum(shard.hbm_bytes for shard in table.shards)]
        assert facts["In DDR"].values() == [sum(shard.ddr_bytes for shard in table.shards)]
        times = [sum(shard.milliseconds.values()) for shard in table.shards]
        assert facts["Slowest shard"].values() + facts["All shards"].values() == pytest.approx([max(times), sum(times)])

        ways = opened.all("tbody")[0].all("tr")
        assert [way.all("th")[0].text.split()[0] for way in ways] == [way.sharding_type for way in table.alternatives]
        (chosen,) = [way for way in table.alternatives if way.sharding_type == table.sharding_type]
        assert [way.all("th")[0].text.endswith(" chosen") for way in ways] == [
            way is chosen for way in table.alternatives
        ]
        for row, way in zip(ways, table.alternatives, strict=True):
            texts = [cell.text for cell in row.all("td")]
            assert row.values() == [way.slowest_shard_ms, way.largest_shard_bytes, way.all_shards_ms]
            assert texts[0] == f"{way.slowest_shard_ms:,.4f} ms"
            assert texts[1] == f"{way.slowest_shard_ms / chosen.slowest_shard_ms:,.2f} \N{MULTIPLICATION SIGN}"
            assert texts[3] == f"{way.largest_shard_bytes / chosen.largest_shard_bytes:,.2f} \N{MULTIPLICATION SIGN}"
            assert texts[5:] == [str(way.num_shards), way.compute_kernel]
        faster = table.alternatives.index(chosen)
        said = opened.all("p")[0].text
        assert said.startswith(
            f"{faster} of these would be faster" if faster else "The slowest shard of the chosen way takes"
        )


def test_several_topologies_are_compared_first() -> None:
    made_up = [
        made_up_estimate(8, NAMES, topology="1x8:h100", seed=1),
        made_up_estimate(2, NAMES, topology="1x2:cpu", devices=False, seed=2),
        made_up_estimate(16, NAMES, topology="2x8:a100-40", seed=3),
    ]
    root = read(*made_up)
    assert [each.text for each in root.all("h2")] == ["Topologies compared", *(each.topology for each in made_up)]
    rows = root.all("table", "compared")[0].all("tbody")[0].all("tr")
    longest = max(sum(each.rank_milliseconds()[each.critical_rank()].values()) for each in made_up)
    for row, each in zip(rows, made_up, strict=True):
        memory = "ddr" if each.topology == "1x2:cpu" else "hbm"
        milliseconds = sum(each.rank_milliseconds()[each.critical_rank()].values())
        fullest = max(held(each, memory), key=lambda rank: sum(rank[kind] for kind in KINDS[:3]))
        used = sum(fullest[kind] for kind in KINDS[:3])
        rows_per_second = 1024 * each.world_size / milliseconds * 1000
        assert row.values() == pytest.approx([milliseconds, rows_per_second, used, used + fullest["free"]])
        assert row.all("th")[0].text == each.topology
        assert [cell.text for cell in row.all("td")][-2:] == [str(each.world_size), "1,024"]
        time_bar, memory_bar = map(segments, row.all("div", "bar"))
        assert sum(time_bar.values()) == pytest.approx(100 * milliseconds / longest, rel=1e-3)
        assert sum(memory_bar.values()) == pytest.approx(100, abs=0.1)
    assert not read(made_up[0]).all("table", "compared")


def test_headline_numbers_say_what_they_are() -> None:
    made_up = made_up_estimate(8, NAMES)
    root = read(made_up, title="train_dlrm demo")
    assert [root.all("h1")[0].text, root.all("title")[0].text] == ["train_dlrm demo"] * 2
    said = " ".join(each.text for each in root.all("p", "lede"))
    assert "part of a training step. Dense layers and reading data are not included" in said
    assert "For steps of 1,024 rows per rank." in said
    figures = {item.all("dt")[0].text: item for item in root.all("dl", "figures")[0].all("div")}
    milliseconds = sum(made_up.rank_milliseconds()[made_up.critical_rank()].values())
    used = made_up.rank_bytes("hbm")
    free = held(made_up, "hbm")[used.index(max(used))]["free"]
    assert figures["Ranks"].text.startswith("Ranks8for 12 tables of ")
    assert figures["Ranks"].values() == [sum(used)]
    assert figures["Fullest rank, HBM"].values() == [max(used), max(used) + free]
    assert figures["Slowest rank"].values() == pytest.approx([milliseconds])
    assert figures["Speed of tables"].values() == pytest.approx([8 * 1024 / milliseconds * 1000])


PAGES = {
    "one": page([made_up_estimate(8, NAMES)], "made up"),
    "several": page([made_up_estimate(40, NAMES, offloaded=True), made_up_estimate(1, NAMES)], "made up"),
}


@pytest.mark.parametrize("document", PAGES.values(), ids=PAGES)
def test_it_needs_nothing_but_itself(document: str) -> None:
    root = Tree(document).root
    used = {each.tag for each in root.walk()}
    assert not used & {"script", "link", "img", "iframe", "object", "embed", "video", "audio", "base", "form", "svg"}
    names = {name for each in root.walk() for name in each.attributes}
    assert not names & {"src", "srcset", "poster", "action", "data", "background"}
    assert not [name for name in names if name.startswith("on")]
    ids = [each.attributes["id"] for each in root.walk() if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    links = [each.attributes["href"] for each in root.walk() if "href" in each.attributes]
    assert {link[0] for link in links} <= {"#"}
    assert {link[1:] for link in links} <= set(ids)
    assert not re.search(r"https?:|url\(|@import|//|javascript:", document)
    (policy,) = [each for each in root.all("meta") if "http-equiv" in each.attributes]
    assert policy.attributes["content"] == "default-src 'none'; style-src 'unsafe-inline'"


@pytest.mark.parametrize("document", PAGES.values(), ids=PAGES)
def test_it_can_be_read_without_seeing_it(document: str) -> None:
    root = Tree(document).root
    assert document.startswith("<!DOCTYPE html>\n")
    assert root.all("html")[0].attributes["lang"] == "en"
    headings = [int(each.tag[1]) for each in root.walk() if re.fullmatch(r"h\d", each.tag)]
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    for table in root.all("table"):
        assert table.all("caption")[0].text
        assert all(cell.attributes["scope"] in ("col", "colgroup", "row") for cell in table.all("th"))
        assert all(row.all("th")[0].attributes["scope"] == "row" for row in table.all("tbody")[0].all("tr"))
    for drawing in [*root.all("div", "bar"), *root.all("span", "track")]:
        assert drawing.attributes["aria-hidden"] == "true"
    for number in root.all("data"):
        assert re.fullmatch(r"[\d,.]+ ([GMk]?B|ms|([GMk] )?rows/s)", number.text)
    style = root.all("style")[0].text
    kinds = {kind for each in root.walk() for kind in each.classes if "style" in each.attributes}
    assert not [kind for kind in kinds if not re.search(rf"\.{kind}[ ,]", style)]
    assert {*KINDS, *PARTS} - {"activations"} <= kinds


def test_names_are_text_and_not_tags() -> None:
    nasty = ["<script>alert(1)</script>", 'a"b', "a'b", "a & b &amp; c", "</details></li>", "\N{SNOWMAN}"]
    made_up = made_up_estimate(2, nasty, topology="<b>.toml")
    root = read(made_up, title="<i>&</i>")
    assert not root.all("script") + root.all("b") + root.all("i")
    assert root.all("h1")[0].text == "<i>&</i>"
    assert root.all("h2")[0].text == "<b>.toml"
    assert {each.text for each in root.all("span", "name")} == set(nasty)
    labels = [each.attributes["aria-label"] for each in root.all("div", "scroll")]
    assert {f"Ways considered for {name}, fastest first" for name in nasty} <= set(labels)


def test_many_ranks_make_no_large_page() -> None:
    names = [f"t_{number}" for number in range(100)]
    alike = page([made_up_estimate(1024, names[:3], distinct=False)], "made up")
    assert len(alike) < 50_000
    distinct = page([made_up_estimate(1024, names)], "made up")
    assert len(distinct) < 5_000_000
    parts = section(Tree(distinct).root)
    for name in ("HBM per rank", "Time per rank"):
        tables = [table for element in parts[name] for table in element.all("table")]
        shown, unfolded = (table.all("tbody")[0].all("tr") for table in tables)
        assert len(shown) == 16
        assert len(unfolded) > 900
        largest = [row.values()[0] for row in shown]
        assert largest == sorted((row.values()[0] for row in unfolded), reverse=True)[:16]
