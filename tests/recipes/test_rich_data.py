"""train_dlrm on data with all that a spec can say: its losses, on any ranks, are those of a DLRM written out here."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.prepared.parquet import ParquetStream
from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows
from dlrm_torchrec.embeddings.initialize import fill_table
from dlrm_torchrec.schema import DatasetSpec, Label
from tests.distributed import run_ranks
from tests.recipe import load_recipe, records, run_recipe
from tests.rich_data import PLAIN, RATINGS, RICH, Row, write_rich

SEED, BATCH, ROWS, EPOCHS, RATE = 4, 32, 200, 3, 0.3
BOTTOM, TOP = (24, 16), (12, 6, 1)
TOLERANCE = 1e-5  # relative: the recipe computes in float32

Weights = dict[str, torch.Tensor]


def initial_weights(spec: DatasetSpec, interaction: str, mean: float) -> Weights:
    """The weights that a run begins with, in float64: dense ones by name, tables as ``t_<table>``."""
    recipe = load_recipe("train_dlrm")
    cfg = replace(recipe.Config(), bottom=BOTTOM, top=TOP, interaction=interaction)
    torch.manual_seed(SEED)
    task, _ = recipe.build(cfg, spec, 1, torch.device("cpu"))
    dense = {name: value.detach().double() for name, value in task.named_parameters() if "embedding_bags" not in name}
    for name in dense if spec.target == "number" else ():
        if name.endswith("model.1.bias"):
            dense[name] += mean
    tables = {}
    for table in spec.tables(BOTTOM[-1]):
        weight = torch.empty(table.rows, table.dim)
        fill_table(weight, [InitialRows.plain(table.rows)], seed=SEED, table=table.name)
        tables[table.name] = weight.double()
    return {name: value.requires_grad_() for name, value in (dense | tables).items()}


def perceptrons(weights: Weights, prefix: str, inputs: torch.Tensor) -> torch.Tensor:
    """All layers below ``prefix`` one after the other, with a ReLU behind each."""
    names = sorted(name.removesuffix(".weight") for name in weights if name.startswith(prefix) and "weight" in name)
    assert names
    for name in names:
        inputs = torch.relu(inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])
    return inputs


def outputs_of(weights: Weights, spec: DatasetSpec, batch: Batch, interaction: str) -> torch.Tensor:
    """DLRM (arXiv 1906.00091) row by row: a top MLP per label over the pairs of all vectors."""
    dense = perceptrons(weights, "model.dense_arch", batch.dense_features.double())
    pooled = {}
    for table in spec.tables(BOTTOM[-1]):
        projection = weights.get(f"model.sparse_arch.embedding_bag_collection.projections.{table.name}.weight")
        for name in table.features:
            bags = batch.sparse_features[name]
            scale = torch.ones(len(bags.values())) if bags.weights_or_none() is None else bags.weights()
            rows = weights[table.name][bags.values()] * scale.double()[:, None]
            sums = torch.stack([bag.sum(0) for bag in rows.split(bags.lengths().tolist())])
            pooled[name] = sums if projection is None else sums @ projection.T
    vectors = [dense, *(pooled[name] for table in spec.tables(BOTTOM[-1]) for name in table.features)]
    pairs = [(one * other).sum(1) for i, one in enumerate(vectors) for other in vectors[i + 1 :]]
    inputs = torch.cat([dense, torch.stack(pairs, 1)] if interaction == "dot" else vectors, dim=1)
    outputs = []
    for head in [f".{number}" for number in range(len(spec.labels))] if spec.more_labels else [""]:
        hidden = perceptrons(weights, f"model.over_arch.model{head}.0", inputs)
        last = f"model.over_arch.model{head}.1"
        outputs.append(hidden @ weights[f"{last}.weight"].T + weights[f"{last}.bias"])
    return torch.cat(outputs, dim=1)


def loss_of(outputs: torch.Tensor, spec: DatasetSpec, batch: Batch) -> torch.Tensor:
    """Σ w_i Σ_l loss_il / n, number by number."""
    total = torch.zeros((), dtype=torch.float64)
    labels = batch.labels.view(len(outputs), -1)
    for row in range(batch.num_rows):
        weight = 1.0 if batch.weights is None else batch.weights[row].item()
        for number in range(len(spec.labels)):
            label, output = labels[row, number].double(), outputs[row, number]
            if spec.target == "number":
                total = total + weight * (output - label) ** 2
            elif not label.isnan():
                total = total + weight * binary_cross_entropy_with_logits(output, label)
    return total / batch.num_rows


def reference(folder: Path, spec: DatasetSpec, lanes: int, interaction: str, rows: list[Row]) -> list[float]:
    first = [*rows[:51], *rows[100:151]]  # the first row group of each of two files
    weights = initial_weights(spec, interaction, sum(row["click"] for row in first) / len(first))
    stream = ParquetStream(
        str(folder), "train", global_batch_size=BATCH, seed=SEED, shuffle=True, epochs=EPOCHS, lanes=lanes
    )
    losses = []
    for batch in stream.batches():
        loss = loss_of(outputs_of(weights, spec, batch, interaction), spec, batch)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for weight, gradient in zip(weights.values(), gradients, strict=True):
                weight -= RATE * gradient
        losses.append(loss.item())
    return losses


def options(folder: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        "demo", f"--data={folder}", f"--run-dir={run_dir}", f"--seed={SEED}", f"--batch-size={BATCH}",
        f"--epochs={EPOCHS}", "--bottom", *map(str, BOTTOM), "--top", *map(str, TOP), "--log.every=1",
        "--eval-every=0", "--schedule.warmup-steps=0", "--schedule.decay-steps=0", "--sparse.kind=sgd",
        f"--sparse.lr={RATE}", "--dense.kind=sgd", f"--dense.lr={RATE}", "--dense.weight-decay=0", *more,
    ]  # fmt: skip


CASES = [
    (RICH, 1, "dot", "auto"),
    (RICH, 2, "dot", "row_wise"),
    (RICH, 2, "cat", "column_wise"),
    (RICH, 2, "dot", "table_wise"),
    (RICH, 2, "dot", "data_parallel"),
    (RATINGS, 1, "dot", "auto"),
    (PLAIN, 2, "dot", "row_wise"),
]


@pytest.mark.parametrize(("spec", "ranks", "interaction", "sharding"), CASES)
def test_losses_are_those_of_a_dlrm_written_out(
    tmp_path: Path, spec: DatasetSpec, ranks: int, interaction: str, sharding: str
) -> None:
    data, runs = tmp_path / "data", tmp_path / "runs"
    data.mkdir()
    rows = write_rich(data, spec, rows=ROWS)["train"]
    more = [f"--sharding.kind={sharding}", f"--interaction={interaction}"]
    metrics = run_recipe("train_dlrm", options(data, runs, *more), ranks)
    found = [each["train/loss"] for each in records(runs / "demo") if "train/loss" in each]
    expected = reference(data, spec, ranks, interaction, rows)
    assert len(expected) == EPOCHS * math.ceil(ROWS / BATCH)
    assert found == pytest.approx(expected, rel=TOLERANCE)
    wanted = {"val/rmse", "val/mae", "val/r2"} if spec.target == "number" else {"val/auc", "val/ne", "val/logloss"}
    wanted |= {"val/click/auc", "val/buy/auc", "val/buy/samples"} if spec.more_labels else set()
    assert wanted <= metrics.keys()


def evaluate(run: Path, options: dict[str, Any]) -> dict[str, float]:
    recipe = load_recipe("evaluate")
    return recipe.main(recipe.Config(recipe="train_dlrm", run=str(run), **options))


@pytest.mark.parametrize("spec", [RICH, RATINGS], ids=["two labels", "numbers"])
def test_evaluation_repeats_the_metrics_of_the_run_and_refuses_data_of_another_meaning(
    tmp_path: Path, spec: DatasetSpec
) -> None:
    data, other, runs = tmp_path / "data", tmp_path / "other", tmp_path / "runs"
    data.mkdir()
    other.mkdir()
    write_rich(data, spec)
    metrics = run_recipe("train_dlrm", options(data, runs, "--speed=auto"), 2)
    found = run_ranks(1, evaluate, runs / "demo", {"ablation": True}, join=False)[0]
    validated = {name: value for name, value in metrics.items() if name.startswith("val/")}
    assert {name: found[name] for name in validated} == pytest.approx(validated, rel=1e-5)
    lost = json.loads((runs / "demo" / "evaluation.json").read_text())["ablation"]
    assert max(lost, key=lambda name: lost[name]["r2" if spec.target == "number" else "auc"]) == "x"

    city = replace(spec.sparse[1], vocabulary="abc")
    write_rich(other, replace(spec, sparse=(spec.sparse[0], city, *spec.sparse[2:])), seed=5)
    with pytest.raises(RuntimeError, match=r"feature 'city' of .* must mean what it meant in training: got vocabulary"):
        run_ranks(1, evaluate, runs / "demo", {"data": str(other)}, join=False)


@pytest.mark.parametrize(
    ("recipe", "spec", "message"),
    [
        ("train_deepfm", RICH, r"data for train_deepfm must have one label: got more_labels \['buy'\]"),
        ("train_neumf", RATINGS, "labels for train_neumf must be 0 or 1: got target 'number' of label 'click'"),
        ("train_mf", replace(PLAIN, weight="importance"), "rows for train_mf must have no weight: got weight 'impor"),
    ],
)
def test_what_another_recipe_cannot_train_is_refused_by_name(
    tmp_path: Path, recipe: str, spec: DatasetSpec, message: str
) -> None:
    write_rich(tmp_path, spec)
    module = load_recipe(recipe)
    with pytest.raises(ValueError, match=message):
        module.main("demo", replace(module.PRESETS["demo"], data=str(tmp_path), run_dir=str(tmp_path / "runs")))


@pytest.mark.parametrize(
    ("recipe", "labels"),
    [("train_fm", ()), ("train_dlrm_compositional", RICH.more_labels), ("train_dcnv2", RICH.more_labels)],
)
def test_weights_of_rows_and_ids_in_another_recipe(tmp_path: Path, recipe: str, labels: tuple[Label, ...]) -> None:
    """Two ranks train on weights like one rank, and otherwise than on data without weights of ids."""
    weighted = replace(RICH, more_labels=labels, sparse=tuple(replace(f, dim=0) for f in RICH.sparse))
    unweighted = replace(weighted, sparse=tuple(replace(f, weights="") for f in weighted.sparse))
    losses: list[object] = []
    for spec, ranks in ((weighted, 1), (weighted, 2), (unweighted, 1)):
        folder = tmp_path / f"{len(losses)}"
        folder.mkdir()
        write_rich(folder, spec)
        arguments = ["demo", f"--data={folder}", f"--run-dir={folder}", "--batch-size=200", "--log.every=1"]
        arguments += ["--eval-every=0", "--epochs=5", "--schedule.warmup-steps=0", "--tables.threshold=10"]
        run_recipe(recipe, arguments, ranks)
        losses.append([each["train/loss"] for each in records(folder / "demo") if "train/loss" in each])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-5)
