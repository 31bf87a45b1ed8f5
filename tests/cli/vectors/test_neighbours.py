"""``dlrm-recipes neighbours``: planted neighbours are found, values are named, and what is unknown is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dlrm_torchrec.cli.main import main
from dlrm_torchrec.cli.vectors.search import nearest
from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest, Split
from dlrm_torchrec.inference.lookups import Categories, hashed_ids
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from tests.recipe import load_recipe, run_recipe

GROUPS = 16  # of the synthetic items: an item with id i is in group i mod 16
CITIES = ["Kraków", "Paris", "Lima", "Oslo", "Rome", "Quito", "Bern", "Tunis"]
SPEC = DatasetSpec(
    name="shops",
    label="click",
    dense=(DenseFeature(name="age"),),
    sparse=(
        SparseFeature(name="city", rows=2 + len(CITIES), encoding="vocab"),
        SparseFeature(name="user", rows=40, encoding="hash"),
        SparseFeature(name="price", rows=5, encoding="bucket", boundaries=(1.5, 10.0, 300.0)),
    ),
)


@pytest.fixture(scope="module")
def movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on users who like the movies of their own group."""
    folder = tmp_path_factory.mktemp("movies")
    run_recipe("train_mf", ["demo", "--rows=640000", "--eval-every=0", f"--run-dir={folder}"], 1)
    return folder / "demo"


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder, and a short run on it in ``demo``; the city of rank r is in 2^(9 - r) of 1,022 rows."""
    folder = tmp_path_factory.mktemp("shops")
    cities = np.repeat(np.arange(len(CITIES)), [1 << (9 - rank) for rank in range(len(CITIES))])
    random, rows = np.random.default_rng(0), len(cities)
    columns = {
        "click": random.integers(0, 2, rows).astype(np.float32),
        "age": random.normal(size=rows).astype(np.float32),
        "city": pa.array(2 + random.permutation(cities), pa.int32()),
        "user": pa.array(random.integers(1, 30, rows), pa.int32()),
        "price": pa.array(random.integers(0, 5, rows), pa.int32()),
    }
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=300)
    (folder / "vocab").mkdir()
    pq.write_table(pa.table({"value": CITIES}), folder / "vocab/city.parquet")
    files = Split(files=(DataFile(path="rows.parquet", rows=rows),))
    Manifest(spec=SPEC, splits={"train": files, "val": files}).save(str(folder))
    options = ["demo", f"--data={folder}", "--epochs=1", "--batch-size=64", f"--run-dir={folder}"]
    run_recipe("train_dlrm", options, 1)
    return folder


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines that a command prints; if it is refused, its one sentence."""
    code = main(["neighbours", *words])
    out, err = capsys.readouterr()
    assert code == (2 if err else 0)
    return (err or out).rstrip("\n").split("\n")


@pytest.mark.parametrize("by", ["cosine", "dot"])
def test_the_nearest_are_those_of_a_search_in_float64(by: str) -> None:
    table = torch.randn(501, 7)
    table[17] = 0
    scaled = table.double() / table.double().norm(dim=1, keepdim=True).clamp(min=1e-12) if by == "cosine" else table
    scores = scaled.double() @ scaled[3].double()
    scores[3] = -torch.inf
    found = nearest(lambda ids: table[ids], torch.arange(501).split(13), 3, by=by, top=20)  # type: ignore[arg-type]
    assert [id for id, _ in found] == scores.argsort(descending=True)[:20].tolist()
    assert [score for _, score in found] == pytest.approx(scores.sort(descending=True).values[:20].tolist(), rel=1e-5)
    assert len(nearest(lambda ids: table[ids], [torch.tensor([3, 5])], 3, by="dot", top=20)) == 1


def test_planted_neighbours_are_found(movies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shares = []
    for movie in range(3 * GROUPS):  # frequent ones of each group
        asked, head, *lines = typed(capsys, str(movies), "movie", str(movie))
        assert asked == f"movie {movie}; {movies}, step 250"
        assert head.split() == ["cosine", "value"]
        found = [(float(score), int(value)) for score, value in map(str.split, lines)]
        assert len(found) == 10
        assert sorted(found, reverse=True, key=lambda each: each[0]) == found
        shares.append(sum(value % GROUPS == movie % GROUPS for _, value in found) / len(found))
    assert sum(shares) / len(shares) > 0.9  # by chance 1 / 16; .98 was measured


def test_values_have_their_texts_and_counts(shops: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, head, *lines = typed(capsys, f"{shops}/demo", "city", "Paris", "--by", "dot")
    assert re.fullmatch(r"city Paris, seen 256 times in 1,020 training rows; .*/demo, step \d+", asked)
    assert head.split() == ["dot", "seen", "value"]
    counted = {value: int(seen) for _, seen, value in map(str.split, lines)}
    assert counted == {city: 1 << (9 - rank) for rank, city in enumerate(CITIES) if city != "Paris"}
    rare = typed(capsys, f"{shops}/demo", "city", "Tunis", "--seen", "100")
    assert rare[1] == "training saw this value too rarely for its neighbours to mean anything"
    assert {line.split()[2] for line in rare[3:]} == {"Kraków", "Paris", "Lima"}  # 512, 256 and 128 times


def test_values_of_every_encoding_are_found(shops: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = f"{shops}/demo"
    (bucket,) = hashed_ids([(Categories.of(pa.array(["ann"])), 40)])[0]
    asked, note, *_ = typed(capsys, run, "user", "ann")
    assert asked.startswith(f"user bucket {bucket}, ")
    assert note == "hashed: all values of a bucket share its vector; there are 39 buckets"
    assert typed(capsys, run, "user", "7", "--id")[0].startswith("user bucket 7, ")
    for price, name in (("1.2", "below 1.5"), ("1.5", "1.5 to 10"), ("300", "300 or more"), ("", "(missing)")):
        assert typed(capsys, run, "price", price)[0].startswith(f"price {name}, ")
    assert typed(capsys, run, "city", "1", "--id")[0].startswith("city (unseen), seen 0 times")


def test_a_package_names_its_values_itself_and_counts_with_data(
    shops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "package")
    recipe = load_recipe("quantize_dlrm")
    recipe.main(recipe.Config(recipe="train_dlrm", run=f"{shops}/demo", output=folder, max_auc_loss=1.0))
    capsys.readouterr()
    asked, *_, last = typed(capsys, folder, "city", "Paris", "--top", "9")
    assert asked == f"city Paris; package {folder}"
    assert last.split()[-1] in {*CITIES, "(missing)", "(unseen)"}
    assert typed(capsys, folder, "city", "Paris", "--data", str(shops))[0].startswith("city Paris, seen 256 times")
    assert typed(capsys, folder, "city", "Paris", "--seen", "2") == [
        "dlrm-recipes: values seen 2 times must be counted in training rows: got none; name them in --data"
    ]


def test_what_is_unknown_is_refused_with_what_is_like_it(
    shops: Path, movies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"{shops}/demo"
    for words, refusal in (
        (("citty", "Paris"), "feature must be a categorical one of 'shops': got 'citty'; did you mean 'city'?"),
        (
            ("age", "3"),
            "feature must be a categorical one of 'shops': got 'age', a number; choose of city, user, price",
        ),
        (("city", "Pariss"), "value of feature 'city' must be one of its 8: got 'Pariss'; did you mean 'Paris'?"),
        (("city", "oslo"), "value of feature 'city' must be one of its 8: got 'oslo'; did you mean 'Oslo'?"),
        (("city", "x"), "value of feature 'city' must be one of its 8: got 'x'; the most frequent ones are 'Kraków', "),
        (("price", "much"), "value of feature 'price' must be a number: got 'much'; correct it"),
        (("user", "40", "--id"), "id of feature 'user' must be from 0 to 39: got '40'; name one"),
    ):
        (line,) = typed(capsys, run, *words)
        assert line.startswith(f"dlrm-recipes: {refusal}")
    (line,) = typed(capsys, str(movies), "movie", "1024")
    assert line == "dlrm-recipes: id of feature 'movie' must be from 0 to 1023: got '1024'; name one"
    (line,) = typed(capsys, str(tmp_path), "movie", "3")
    assert "must hold a whole checkpoint: got those of steps []" in line


def test_data_that_moved_must_be_named(shops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, config = tmp_path / "demo", json.loads((shops / "demo/config.json").read_text())
    run.mkdir()
    (run / "checkpoints").symlink_to(shops / "demo/checkpoints")
    (run / "config.json").write_text(json.dumps(config | {"data": "gone"}))
    (line,) = typed(capsys, str(run), "city", "Paris")
    assert line.endswith("got 'gone'; name where it is now with --data")
    assert typed(capsys, str(run), "city", "Paris", "--data", str(shops))[0].startswith("city Paris, seen 256 times")
    assert typed(capsys, str(run), "user", "ann")[0].startswith("user bucket ")
