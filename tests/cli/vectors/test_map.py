"""``dlrm-recipes map``: places, colours and texts of the points, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dlrm_torchrec.cli.main import main
from dlrm_torchrec.cli.vectors import commands, plane
from dlrm_torchrec.cli.vectors.page import MOST_POINTS, page
from dlrm_torchrec.cli.vectors.plane import principal_components
from dlrm_torchrec.cli.vectors.source import Source
from tests.cli.vectors.made_up import made_up
from tests.pages.elements import Element, Tree


def drawn(source: Source, **options: str) -> tuple[Element, dict[str, Any]]:
    """The page of a map, and its points."""
    root = Tree(page(source, by="pca", colour="", **options) if not options else page(source, by="pca", **options)).root
    (points,) = [each for each in root.all("script") if each.attributes.get("id") == "points"]
    return root, json.loads(points.text)


def test_the_plane_is_that_of_a_singular_value_decomposition() -> None:
    vectors = torch.randn(200, 6, dtype=torch.float64) * torch.tensor([1, 9, 2, 5, 1, 3.0]) + 40
    found = principal_components(vectors.float())
    left, values, _ = np.linalg.svd(vectors.numpy() - vectors.numpy().mean(0), full_matrices=False)
    expected = left[:, :2] * values[:2]
    signs = np.sign((expected * found.places.numpy()).sum(0))
    assert found.places.numpy() == pytest.approx(expected * signs, abs=1e-3)
    assert found.shares == pytest.approx(values[:2] ** 2 / (values**2).sum(), rel=1e-4)
    assert principal_components(torch.arange(4.0)[:, None]).shares == pytest.approx((1, 0))


def test_points_have_places_names_and_counts() -> None:
    source, table = made_up()
    root, points = drawn(source)
    assert points["names"][0] == "</script> & <b>0</b> long"  # id 2, the most frequent
    assert len(points["names"]) == 59  # all but (unseen)
    assert "(missing)" in points["names"]
    assert points["seen"][:3] == ["1,000", "500", "333"]
    assert points["colours"][0] == 100  # the end of the scale
    assert min(points["colours"]) == 0
    order = [2, 3, 4]
    places = principal_components(table[[0, *range(2, 60)]]).places[1:4]
    shape = np.array([points["x"][:3], points["y"][:3]]).T
    extent = float((places[0] - places[1]).norm() / np.linalg.norm(shape[0] - shape[1]))
    assert (shape - shape[0]) * extent == pytest.approx((places - places[0]).numpy(), abs=0.01), order
    assert "59all that training saw at least once, in a table of 60 rows." in root.text
    assert all("<b>" not in each.text or each.tag != "b" for each in root.walk())
    assert root.all("b") == []


def test_without_counts_ranks_are_the_scale_and_all_values_are_drawn() -> None:
    root, points = drawn(made_up(counted=False)[0])
    assert points["seen"] == []
    assert points["names"][:2] == ["(missing)", "(unseen)"]
    assert points["title"] == "rank by frequency"
    assert points["texts"][:2] == ["1", "2"]
    assert len(points["names"]) == 60
    assert "60all, in a table of 60 rows." in root.text


def test_of_more_values_than_fit_the_most_frequent_are_drawn() -> None:
    root, points = drawn(made_up(MOST_POINTS + 500, dim=2, counted=False)[0])
    assert len(points["names"]) == MOST_POINTS
    assert points["names"][-1].startswith(f"</script> & <b>{MOST_POINTS - 3}</b>")
    assert "20,000the most frequent of 20,500, in a table of 20,500 rows." in root.text


def test_a_file_gives_kinds_or_a_scale(tmp_path: Path) -> None:
    source, _ = made_up()
    names = [source.values.name(id) for id in range(2, 60)]
    kinds = {name: f"kind {min(number % 12, 9)}" for number, name in enumerate(names) if number % 5}
    pq.write_table(pa.table({"a": list(kinds), "genre": list(kinds.values())}), tmp_path / "kinds.parquet")
    root, points = drawn(source, colour=str(tmp_path / "kinds.parquet"))
    legend = [each.text for each in root.all("ul", "legend")[0].all("li")]
    assert legend[:2] == ["genre", "kind 9"]  # the most frequent one first
    assert len(legend) == 1 + 8 + 1
    assert legend[-2:] == ["others", "not in the file"]
    for name, colour, text in zip(points["names"], points["colours"], points["texts"], strict=True):
        assert text == kinds.get(name, "")
        assert colour == (-1 if not text else legend[1:].index(text) if text in legend else 7)

    lines = "".join(f'"{name}",{number / 7}\n' for number, name in enumerate(names))
    (tmp_path / "numbers.csv").write_text(f"value,score\n{lines}")
    root, points = drawn(source, colour=str(tmp_path / "numbers.csv"))
    assert points["colours"][:58] == [
        -1 if name == "(missing)" else round(100 * names.index(name) / 57) for name in points["names"][:58]
    ]
    assert [each.text for each in root.all("ul", "legend")[0].all("li")] == ["score", "08.14286", "not in the file"]


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("value\nx\n", r"must have a column of values and one to colour them by: got \['value'\]"),
        ("value,kind\nx,1\n", r"first column of .* must have values of feature 'thing', such as .*: got x; correct it"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, text: str, refusal: str) -> None:
    (tmp_path / "colours.csv").write_text(text)
    with pytest.raises(ValueError, match=refusal):
        page(made_up()[0], by="pca", colour=str(tmp_path / "colours.csv"))


def test_too_few_values_and_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="a map must have at least 3 vectors of finite numbers: got 2; take a feature"):
        page(made_up(2, counted=False)[0], by="pca", colour="")
    source, table = made_up()
    table[7, 1] = torch.nan
    with pytest.raises(ValueError, match="a map must have at least 3 vectors of finite numbers: got 59"):
        page(source, by="pca", colour="")


def test_the_command_writes_a_page_again_but_over_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "open_vectors", lambda _: made_up()[0])
    output = tmp_path / "map.html"
    for _ in range(2):
        assert main(["map", "runs/x", "thing", "--output", str(output)]) == 0
        assert capsys.readouterr().out == f"{output}\n"
    assert commands.MARK in output.read_bytes()
    output.write_text("mine")
    assert main(["map", "runs/x", "thing", "--output", str(output)]) == 2
    assert "output must be a new file, or a page of this command" in capsys.readouterr().err
    assert output.read_text() == "mine"


def test_without_its_package_umap_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plane, "find_spec", lambda _: None)
    assert main(["map", "runs/x", "thing", "--by", "umap"]) == 2
    assert "a map by umap must have umap-learn: got none; pip install umap-learn" in capsys.readouterr().err


def test_umap_keeps_groups_together() -> None:
    pytest.importorskip("umap")
    centres = torch.randn(3, 16) * 10
    vectors = centres.repeat(40, 1) + torch.randn(120, 16)
    places = plane.plane(vectors, "umap").places
    own = torch.cdist(places, torch.stack([places[group::3].mean(0) for group in range(3)])).argmin(1)
    assert own.tolist() == [number % 3 for number in range(120)]
