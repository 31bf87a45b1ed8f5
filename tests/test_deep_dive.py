"""The deep dive: drawings are what their code draws, claims have commands that tests run, pages are whole."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import test_readme
from tests.recipe import ROOT
from tests.test_docs import CLUSTER, GUIDES, PAGES, commands, script

VERDICTS = {
    "yes": "{} claims hold",
    "partly": "{} hold in part",
    "no": "{} do not",
    "elsewhere": "{} need machines or data from elsewhere",
}
PARTS = [name for name in GUIDES if name.startswith("deep_dive/") and Path(name).stem not in ("index", "claims")]
CLAIMS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGES["deep_dive/claims.md"].splitlines()
    if line.startswith("| ") and not line.startswith("| claim |")
]
EXECUTED = {
    command.partition("  #")[0] for page in GUIDES for command in commands(PAGES[page]) if CLUSTER not in command
} | set(test_readme.COMMANDS)


@pytest.mark.parametrize("name", script("draw").NAMES)
def test_a_drawing_is_what_its_code_draws(name: str) -> None:
    drawn, file = script("draw").drawn(name), ROOT / "docs" / "drawings" / f"{name}.svg"
    assert file.read_text() == drawn, f"docs/drawings/{name}.svg is not what its code draws: run python docs/draw.py"
    assert ElementTree.fromstring(drawn).get("aria-label")
    assert "prefers-color-scheme: dark" in drawn
    assert any(f"drawings/{name}.svg)" in page for page in PAGES.values())


@pytest.mark.parametrize("name", script("figures").FIGURES)
def test_a_figure_shows_what_is_measured_now(name: str) -> None:
    figures = script("figures")
    signed = figures.signature(figures.FOLDER / name)
    assert signed == figures.source(name), f"docs/figures/{name} is stale: run python docs/figures.py {name}"


def test_the_source_of_a_figure_is_what_its_command_reached() -> None:
    measured = script("figures").measured
    assert ".8196 ± .0006, .8196 ± .0008, .8184 ± .0004" in measured("python recipes/compare_embeddings.py frontier")
    assert len(measured("python recipes/compare_embeddings.py frontier")) >= 5  # also those of 'likewise'
    (shares,) = measured("python benchmarks/production_shapes.py --plot operator_shares.svg")
    assert "FC 90 %" in shares
    assert measured("python benchmarks/production_shapes.py less") == []


def test_the_roofline_is_drawn_from_rows_of_the_results() -> None:
    roofline, results = script("drawings.roofline"), (ROOT / "RESULTS.md").read_text()
    assert [text for text in roofline.MEASURED if text not in results] == []


def test_a_text_that_leaves_its_drawing_is_refused() -> None:
    kit = script("drawings.kit")
    picture = kit.Drawing(100, "nothing")
    with pytest.raises(ValueError, match=r"text must have at least 11 units .* got 'too long' of 12 from 340 to 39"):
        picture.text((340, 20), "too long")
    with pytest.raises(ValueError, match=r"text must have at least 11 units .* of 10 from 5"):
        picture.text((5, 20), "too small", size=10)
    with pytest.raises(ValueError, match="text of a box must fit its 20 units: got 'much'; shorten it"):
        picture.box((0, 0), (20, 20), "much")
    with pytest.raises(ValueError, match=r"kind of a box must be one of .* got 'odd'"):
        picture.box((0, 0), (20, 20), kind="odd")


@pytest.mark.parametrize("page", PARTS)
def test_a_part_has_all_that_a_reader_expects(page: str) -> None:
    text = PAGES[page]
    assert re.search(r"!\[[^\]]+\]\(\.\./drawings/\w+\.svg\)", text)
    assert re.search(r"\n## The formula\n.*?\n    \S", text, re.DOTALL) or page == "deep_dive/operators.md"
    assert 4 <= text.count("\n>>> ") <= 14
    assert commands(text)
    assert "RESULTS.md#" in text
    assert "\n## What the article hopes, and what was found\n" in text


def test_every_claim_is_shown_by_a_command_that_tests_run() -> None:
    assert len(CLAIMS) == len({claim for claim, *_ in CLAIMS}) == 65
    for claim, page, command, number in CLAIMS:
        assert re.fullmatch(r"\[[\w ]+\]\(\w+\.md\)", page), claim
        assert number.split(": ")[0] in VERDICTS, claim
        assert len(number) > len("yes: "), claim
        typed = command.strip("`")
        if not typed.startswith("pytest "):
            assert typed in EXECUTED, f"no page that tests execute has the command of {claim!r}: {typed}"
            continue
        path, *chosen = typed.removeprefix("pytest ").split(" -k ")
        selected = [each.strip('"').removeprefix("examples and ") for each in chosen]  # without the page's commands
        assert (ROOT / path).exists(), claim
        assert chosen == [f'"examples and {each}"' for each in selected], claim
        assert [each for each in selected if ">>> " not in PAGES[f"deep_dive/{each}"]] == [], claim


def test_the_count_of_claims_is_that_of_the_table() -> None:
    counted = Counter(number.split(":")[0] for *_, number in CLAIMS)
    told = [sentence.format(counted[verdict]) for verdict, sentence in VERDICTS.items()]
    assert f"{', '.join(told[:3])}, and {told[3]}." in PAGES["deep_dive/claims.md"].replace("\n", " ")
