"""Estimates as tables for a terminal: what a reader adds up, looks up and compares."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dlrm_torchrec.sharding.estimate.text import describe_ranks, describe_tables, explain
from tests.sharding.estimate.estimates import made_up_estimate

NAMES = ["t_Song%20Title", "t_city", "t_%1B%5B31m", "t_device"]
OF_TABLES = "ms are those of tables alone"


def cells(text: str, heading: str) -> list[float]:
    """The first number below a heading in each line of a table of ranks."""
    lines = [re.split(r"  +", line.strip().replace(" /  ", " / ")) for line in text.splitlines()]
    place = lines[0].index(heading)
    return [float(line[place].split()[0]) for line in lines[1:] if len(line) > place]


@pytest.mark.parametrize("activations", [0, 7_000_000_000])
def test_what_is_used_is_the_sum_of_its_columns(activations: int) -> None:
    estimate = replace(made_up_estimate(5, NAMES, seed=3), activation_bytes=activations)
    text = describe_ranks(estimate)
    parts = ["weights GB", "moments GB", "buffers GB", *(["activations GB"] if activations else [])]
    sums = [sum(own) for own in zip(*(cells(text, part) for part in parts), strict=True)]
    assert len(sums) == 5
    assert sums == pytest.approx(cells(text, "HBM GB used / of"), abs=3e-3)
    assert (OF_TABLES in text) is (activations > 0)


def test_names_are_shown_as_columns_were_written() -> None:
    estimate = made_up_estimate(2, NAMES)
    text = describe_tables(estimate)
    assert "\nt_Song Title  " in text
    assert "\x1b" not in text
    assert explain(estimate, "t_Song Title") == explain(estimate, "t_Song%20Title")
    assert text.splitlines()[-1].startswith("GB, all: ")  # the first table has copies
    alone = replace(estimate, tables=estimate.tables[1:])
    assert "GB, all: " not in describe_tables(alone)


def test_a_way_that_takes_as_long_is_called_so() -> None:
    estimate = made_up_estimate(2, NAMES)
    (first, second, *rest) = estimate.tables[0].alternatives

    def explained(milliseconds: float) -> str:
        ways = (first, replace(second, slowest_shard_ms=milliseconds), *rest)
        kind, kernel = first.sharding_type, first.compute_kernel
        table = replace(estimate.tables[0], alternatives=ways, sharding_type=kind, compute_kernel=kernel)
        return explain(replace(estimate, tables=(table,)), table.name).splitlines()[-1].partition("; ")[2]

    assert explained(first.slowest_shard_ms * 1.004) == "the next way takes as long"
    assert explained(first.slowest_shard_ms * 1.5) == "the next way takes 1.50 times as long"
