"""The costs that model_costs.py prints against counts of the operators of real forward passes."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from typing import Any

import pytest

from tests.models.test_summary import run
from tests.recipe import ROOT
from tests.scripts import run_python

SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks/model_costs.py"))


@pytest.mark.parametrize("name", SCRIPT["MODELS"])
def test_multiply_adds_are_those_of_a_real_forward(name: str) -> None:
    shape = SCRIPT["shape_of"](name)
    rows = {each.rows: max(3, min(each.rows, 50)) for each in shape.sparse}  # multiply-adds do not depend on rows
    few = replace(shape, sparse=tuple(replace(each, rows=rows[each.rows]) for each in shape.sparse))
    model, parts = SCRIPT["of_recipe"](name, few)
    by_child, products, row_elements = run(model, few)
    found = {part: cost.multiply_adds for part, cost in parts.items()}
    assert found.pop("embedding") == pytest.approx(row_elements)
    assert sum(found.values()) == pytest.approx(sum(by_child.values()) + products)
    children = {"bottom": "dense_arch", "top": "over_arch"}
    same = [found[part] == pytest.approx(by_child[child]) for part, child in children.items() if child in by_child]
    assert all(same) or name in ("FM", "DeepFM")  # whose dense columns are scaled by no matrix product
    assert sum(cost.parameters for cost in parts.values()) == sum(each.numel() for each in model.parameters())


def test_hstu_has_the_published_size_and_work() -> None:
    _, parts = SCRIPT["hstu"]()
    assert parts["embedding"].parameters * 4 == pytest.approx(600e9, rel=1e-3)
    assert parts["embedding"].multiply_adds == (3 * 4087 + 8) * 512
    # 77, 58 and 180 GFLOP of training in projections, outputs and attention, of which the forward pass is a third, and
    # two sevenths of attention
    forward = (77 + 58) / 3 + 180 * 2 / 7
    assert 2 * parts["interaction"].multiply_adds / 1e9 == pytest.approx(forward, rel=0.01)


def test_a_model_with_a_part_that_has_no_formula_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    of_recipe = SCRIPT["of_recipe"]
    describe = of_recipe.__globals__["describe_model"]
    monkeypatch.setitem(
        of_recipe.__globals__,
        "describe_model",
        lambda *args, **options: replace(describe(*args, **options), uncounted=["X"]),
    )
    with pytest.raises(ValueError, match=r"costs must cover all of a model: got .* and no formula for X; add it"):
        of_recipe("LR")


def test_the_page_has_the_table_that_is_printed() -> None:
    costs = {name: SCRIPT["of_recipe"](name)[1] for name in SCRIPT["MODELS"]} | {"HSTU": SCRIPT["hstu"]()[1]}
    assert SCRIPT["page"](costs) in (ROOT / "docs/deep_dive/architecture.md").read_text()


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "-"), (7, "7"), (999, "999"), (1_000, "1.00 k"), (155_984, "156 k"), (48_306_585_600, "48.3 G")],
)
def test_numbers_are_short(number: int, text: str) -> None:
    assert SCRIPT["short"](number) == text


def test_sizes_are_multiples_of_the_first_model() -> None:
    done = run_python(["benchmarks/model_costs.py", "--form", "json"], ROOT)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert list(printed["models"]) == [*SCRIPT["MODELS"], "HSTU"]
    first, second, third = printed["relative to RMC1"]
    assert {value for name, value in first.items() if name != "model" and "FC" not in name} == {1}
    assert (second["tables"], second["lookups"], third["dense columns"]) == (32 / 8, 120 / 80, 2560 / 128)
    assert (first["bottom FC"], third["top FC"]) == ([64 / 32, 1], [512 / 64, 256 / 64])
