"""recipes/cluster_tables.py: clusters of trained runs, the runs that go on from them, and classes by a user's file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from dlrm_torchrec.embeddings.assignments import read_assignment
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, History, SparseFeature
from dlrm_torchrec.train.checkpoints.folder import checkpoint_path
from dlrm_torchrec.train.checkpoints.tables import read_dense, read_moments, read_table, saved_tables
from tests.recipe import load_recipe, run_recipe

ITEMS, GROUPS, CONTEXTS, DIM = 1000, 12, 20, 16


def world(folder: Path, train_rows: int, val_rows: int = 20_000, *, alike: bool = True) -> Path:
    """A prepared folder in which items of a group behave alike, or each for itself."""
    random = np.random.default_rng(0)
    group = random.integers(0, GROUPS, ITEMS) if alike else np.arange(ITEMS)
    logits = random.normal(0, 2, (group.max() + 1, CONTEXTS))
    spec = DatasetSpec(
        name="world",
        label="label",
        dense=(DenseFeature(name="noise"),),
        sparse=(SparseFeature(name="item", rows=ITEMS), SparseFeature(name="context", rows=CONTEXTS)),
    )
    splits: dict[str, Any] = {}
    folder.mkdir()
    for split, rows in (("train", train_rows), ("val", val_rows)):
        item = (ITEMS * random.random(rows) ** 1.5).astype(np.int32)
        context = random.integers(0, CONTEXTS, rows).astype(np.int32)
        label = random.random(rows) < 1 / (1 + np.exp(-logits[group[item], context]))
        noise = random.normal(size=rows).astype(np.float32)
        columns = {"label": label.astype(np.float32), "noise": noise, "item": item, "context": context}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
        splits[split] = {"rows": rows, "files": [{"path": f"{split}.parquet", "rows": rows}]}
    (folder / "dataset.json").write_text(json.dumps({"format": 2, "spec": spec.to_json(), "splits": splits}))
    return folder


def train(folder: Path, name: str, *options: str, ranks: int = 1) -> dict[str, float]:
    fixed = ["demo", f"--data={folder}/data", "--batch-size=256", "--epochs=1", "--top", "32", "1", "--sparse.lr=.1"]
    fixed += ["--dense.lr=.01", "--sparse.eps=1e-8", "--dense.weight-decay=0", "--schedule.warmup-steps=10"]
    fixed += ["--schedule.decay-start=10", "--eval-every=0", f"--run-dir={folder}/{name}"]
    return run_recipe("train_dlrm", [*fixed, *options], ranks)


def cluster(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    recipe = load_recipe("cluster_tables")
    return recipe.main(recipe.Config(source=str(source), output=str(output), **options))


def clusters(folder: Path, *, pretrained: bool = True) -> list[str]:
    begin = [f"--tables.pretrained={folder}"] if pretrained else []
    return ["--tables.kind=clusters", f"--tables.assignments={folder}", *begin]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run on two ranks, and its data."""
    folder = tmp_path_factory.mktemp("run")
    world(folder / "data", 2560, 512)
    train(folder, "plain", ranks=2)
    return folder


def test_rows_and_moments_are_means_by_lookups(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = cluster(run / "plain/demo", tmp_path, levels=2, classes=9, hashed=True)
    assert json.loads(capsys.readouterr().out) == reports
    assert reports.keys() == {"t_item"}  # the other table has fewer rows than its clusters
    path = checkpoint_path(f"{run}/plain/demo/checkpoints")
    saved = {table.name: table for table in saved_tables(path)}
    vectors, moments = (
        read_table(path, saved["t_item"]).double(),
        read_moments(path, saved["t_item"])["momentum1"].double(),
    )
    lookups = torch.from_numpy(np.bincount(pq.read_table(run / "data/train.parquet")["item"], minlength=ITEMS)).double()
    file = load_file(tmp_path / "t_item.safetensors")
    assert (file["codes"].dtype, file["weight"].shape, file["momentum1"].shape) == (torch.int16, (27, DIM), (27,))
    rest, first = vectors, 0
    for level in range(2):
        codes = file["codes"][level].long()
        for code in range(9):
            mine = codes == code
            if lookups[mine].sum() > 0:  # centroids are those of Lloyd's last step, which may be one behind the codes
                near = (rest[mine] * lookups[mine][:, None]).sum(0) / lookups[mine].sum()
                assert (file["weight"][first + code] - near).abs().max() < 0.02
                mean = (moments[mine] * lookups[mine]).sum() / lookups[mine].sum()
                assert float(file["momentum1"][first + code]) == pytest.approx(float(mean), rel=1e-4)
        rest, first = rest - file["weight"][first + codes].double(), first + 9
    assert file["weight"][18:].abs().max() == file["momentum1"][18:].max() == 0
    explained = sum(reports["t_item"]["explained"])
    spread = vectors - (vectors * lookups[:, None]).sum(0) / lookups.sum()
    left = (rest.square().sum(1) * lookups).sum() / (spread.square().sum(1) * lookups).sum()
    assert 1 - explained == pytest.approx(float(left), abs=1e-3)
    assert reports["t_item"]["bytes"] == 27 * DIM * 4 + 2 * 2 * ITEMS
    plain = load_file(tmp_path / "t_context.safetensors")
    assert torch.equal(plain["weight"], read_table(path, saved["t_context"]))
    dense = load_file(tmp_path / "dense.safetensors")
    assert dense.keys() == read_dense(path).keys()
    assert len(dense) == 8  # a weight and a bias of each of four layers


def test_a_run_goes_on_from_them_and_is_resumed_with_these_codes_only(run: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(run / "data")
    for seed in (0, 1):
        cluster(run / "plain/demo", tmp_path / f"c{seed}", classes=9, hashed=True, seed=seed, tables=("t_item",))
    for ranks in (1, 2):
        still = ["--sparse.lr=1e-30", "--dense.lr=1e-30"]  # a run that learns nothing
        train(tmp_path, f"r{ranks}", *clusters(tmp_path / "c0"), *still, ranks=ranks)
        path = checkpoint_path(f"{tmp_path}/r{ranks}/demo/checkpoints")
        (table,) = (each for each in saved_tables(path) if each.name == "t_item")
        given = load_file(tmp_path / "c0/t_item.safetensors")["weight"]
        torch.testing.assert_close(read_table(path, table), given, rtol=0, atol=1e-20)
        first = load_file(tmp_path / "c0/dense.safetensors")
        for name, value in read_dense(path).items():
            torch.testing.assert_close(value, first[name], rtol=0, atol=1e-20)
    with pytest.raises(
        RuntimeError, match=r"tables\.assignments\.t_item must be what the checkpoint .* was trained with"
    ):
        train(tmp_path, "r1", *clusters(tmp_path / "c0"), f"--tables.assignments={tmp_path}/c1", *still)
    # the next clusters are of the composed vectors, and draw the hash again
    reports = cluster(tmp_path / "r1/demo", tmp_path / "c2", classes=9, hashed=True)
    assert reports["t_item"]["explained"] == [pytest.approx(1)]
    seeds = []
    for name in ("c0", "c2"):
        found = read_assignment(str(tmp_path / name), "t_item", ITEMS)
        assert found is not None
        seeds.append(found.hash_seed)
    assert seeds == [1, 2]


def test_what_cannot_be_clustered_is_said(run: Path, tmp_path: Path) -> None:
    source = run / "plain/demo"
    with pytest.raises(ValueError, match=r"tables must be ones of .*: got t_other; choose of t_"):
        cluster(source, tmp_path, tables=("t_other",))
    with pytest.raises(
        ValueError, match=r"levels and classes must be at least 1, .* each of 3 parts: got 2, 256 and 2;"
    ):
        cluster(source, tmp_path, levels=2, hashed=True, max_rows=2)
    with pytest.raises(ValueError, match=r"tables to cluster must have more rows than their clusters: got .*; lower"):
        cluster(source, tmp_path, classes=5000)
    assert cluster(source, tmp_path, levels=2, hashed=True, max_rows=40)["t_item"]["classes"] == [13, 13]


def test_classes_of_a_file_are_matched_to_the_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, brands = tmp_path / "data", tmp_path / "brands.csv"
    (data / "vocab").mkdir(parents=True)
    spec = DatasetSpec(
        name="shop", label="label", dense=(), sparse=(SparseFeature(name="item", rows=6, encoding="vocab"),)
    )
    pq.write_table(pa.table({"value": ["tea", "7", "milk", "rice"]}), data / "vocab/item.parquet")
    (data / "dataset.json").write_text(json.dumps({"format": 2, "spec": spec.to_json(), "splits": {}}))
    brands.write_text("what,brand,kind\n tea ,Zen,drink\nmilk,Alp,drink\n7.0,Zen,\nsoap,Alp,bath\n")
    reports = cluster(data, tmp_path / "out", file=str(brands), tables=("t_item",), hashed=True)
    assert json.loads(capsys.readouterr().out) == reports
    found = read_assignment(str(tmp_path / "out"), "t_item", 6)
    assert found is not None
    # missing, unseen, tea, 7, milk, rice; class 0 is for those without one; Alp is 1 and Zen 2
    assert [codes.tolist() for codes in found.assigned.codes] == [[0, 0, 2, 2, 1, 0], [0, 0, 1, 0, 1, 0]]
    report = reports["t_item"]
    assert (report["levels"], report["unknown_values"], report["ids_without_class"]) == (["brand", "kind"], 1, 3)
    assert found.hash_classes == 3
    events = (SparseFeature(name="user", rows=9), replace(spec.sparse[0], multi_hot=True))
    histories = replace(spec, sparse=events, history=History(events=("item",), actions=("buy",), positive=("buy",)))
    (data / "dataset.json").write_text(json.dumps({"format": 2, "spec": histories.to_json(), "splits": {}}))
    assert cluster(data, tmp_path / "histories", file=str(brands), tables=("t_item",), hashed=True) == reports
    brands.write_text("what,brand\ntea,Zen\nTea,Alp\ntea,Alp\n")
    with pytest.raises(
        ValueError, match=r"must give each value of 'item' one class per column: got two for .* of id 2;"
    ):
        cluster(data, tmp_path / "out", file=str(brands), tables=("t_item",))
    brands.write_text("what\ntea\n")
    with pytest.raises(ValueError, match=r"must have a column of values of 'item', .* got \['what'\] with 1 rows; add"):
        cluster(data, tmp_path / "out", file=str(brands), tables=("t_item",))
    with pytest.raises(ValueError, match=r"--tables must name the one table whose values .* has: got \(\); name it"):
        cluster(data, tmp_path / "out", file=str(brands))


@pytest.mark.slow
def test_clusters_beat_hashing_where_ids_behave_alike(tmp_path: Path) -> None:
    """Equal bytes: 32 rows of 64 bytes and 2 bytes per id are 64 hashed rows."""
    auc: dict[str, dict[bool, float]] = {"plain": {}, "hash": {}, "clusters": {}, "again": {}}
    for alike in (True, False):
        folder = tmp_path / str(alike)
        folder.mkdir()
        world(folder / "data", 60_000, alike=alike)
        hashed = ["--tables.kind=hash", "--tables.max-rows=64", "--tables.threshold=50"]
        auc["plain"][alike] = train(folder, "plain")["val/auc"]
        auc["hash"][alike] = train(folder, "hash", *hashed)["val/auc"]
        last = "plain"
        for name in ("clusters", "again"):
            reports = cluster(folder / f"{last}/demo", folder / name, classes=16, hashed=True)
            assert reports["t_item"]["bytes"] <= 64 * DIM * 4
            last = f"after {name}"
            auc[name][alike] = train(folder, last, *clusters(folder / name))["val/auc"]
    assert min(auc["clusters"][True], auc["again"][True]) > auc["hash"][True] + 0.1
    assert auc["clusters"][True] > auc["plain"][True]
    assert auc["clusters"][False] < auc["plain"][False] - 0.03


@pytest.mark.slow
def test_clustering_between_epochs_needs_no_plain_table(tmp_path: Path) -> None:
    """CCE from several hashes: each round is better, and beats hashing into as many bytes."""
    world(tmp_path / "data", 60_000)
    hashed = train(tmp_path, "hash", "--tables.kind=hash", "--tables.max-rows=96", "--tables.threshold=50")["val/auc"]
    rounds = [train(tmp_path, "r0", "--tables.kind=hashes", "--tables.max-rows=64", "--tables.threshold=50")["val/auc"]]
    for number in range(4):
        cluster(tmp_path / f"r{number}/demo", tmp_path / f"c{number}", classes=32, hashed=True, seed=number)
        rounds.append(train(tmp_path, f"r{number + 1}", *clusters(tmp_path / f"c{number}"))["val/auc"])
    assert rounds[2] > rounds[0] + 0.01
    assert rounds[4] > max(rounds[1], hashed) + 0.01
