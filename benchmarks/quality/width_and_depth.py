"""AUC of DLRMs whose MLPs have other widths and depths, on rows whose labels need both.

    python -m benchmarks.quality.width_and_depth

The known model that draws the labels is a DLRM itself: a random network of three layers turns the dense columns into a
vector, each id has one, and a second such network makes the logit of the products of every two vectors. So the best
possible AUC is known, and neither the dense columns nor the products say much by their sums. One MLP is varied at a
time, while the other one has three layers of 128. All are trained with the same learning rates, once on the same rows.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from dlrm_torchrec.datasets.numpy_columns import Columns, IdLists
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.world import join_world

from .training import Fitted, Rows, draw, fit, spread

Floats = NDArray[np.float64]
Widths = tuple[int, ...]

DENSE, ID_ROWS = 8, (300, 300)
FACTORS = 4  # of the hidden vectors
HIDDEN, LAYERS, GAIN = 16, 2, 2.0  # of a hidden network: width, layers with a tanh, deviation of what they get
LOGIT_STD, CALIBRATION_ROWS = 3.0, 8192

SPEC = DatasetSpec(
    name="networks",
    label="label",
    dense=tuple(DenseFeature(name=f"number_{place}") for place in range(DENSE)),
    sparse=tuple(SparseFeature(name=f"id_{place}", rows=rows) for place, rows in enumerate(ID_ROWS)),
)
DIM = 16
FULL_BOTTOM, FULL_TOP = (128, 128, 128, DIM), (128, 128, 128, 1)
BOTTOMS: tuple[Widths, ...] = ((DIM,), (32, DIM), (128, DIM), (128, 128, DIM))
TOPS: tuple[Widths, ...] = ((8, 1), (32, 1), (128, 1), (128, 128, 1))


class Network:
    """A random network; on the rows that it begins with, each output has mean 0 and deviation 1."""

    def __init__(self, random: np.random.Generator, inputs: Floats, outputs: int) -> None:
        self.layers: list[tuple[Floats, Floats, Floats]] = []  # weights, and the mean and scale of what they give
        for width, gain in [*[(HIDDEN, GAIN)] * LAYERS, (outputs, 1.0)]:
            values = np.tanh(self(inputs)) if self.layers else inputs
            weights = random.standard_normal((values.shape[1], width))
            found = values @ weights
            self.layers.append((weights, found.mean(0), gain / found.std(0)))

    def __call__(self, inputs: Floats) -> Floats:
        values = inputs
        for number, (weights, mean, scale) in enumerate(self.layers):
            values = ((np.tanh(values) if number else values) @ weights - mean) * scale
        return values


class World:
    """The networks and vectors that draw the labels."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.vectors = [self.random.standard_normal((rows, FACTORS)) for rows in ID_ROWS]
        dense, ids = self.inputs(CALIBRATION_ROWS)
        self.bottom = Network(self.random, dense, FACTORS)
        self.top = Network(self.random, self.products(dense, ids), 1)

    def inputs(self, count: int) -> tuple[Floats, list[NDArray[np.int64]]]:
        """Dense columns (n, DENSE), and the ids of each feature."""
        return self.random.standard_normal((count, DENSE)), [self.random.integers(0, rows, count) for rows in ID_ROWS]

    def products(self, dense: Floats, ids: list[NDArray[np.int64]]) -> Floats:
        """Of every two vectors of a row: (n, 3)."""
        looked_up = [table[each] for table, each in zip(self.vectors, ids, strict=True)]
        return np.stack([(a * b).sum(1) for a, b in combinations([self.bottom(dense), *looked_up], 2)], axis=1)

    def rows(self, count: int) -> Rows:
        dense, ids = self.inputs(count)
        logits = LOGIT_STD * self.top(self.products(dense, ids))[:, 0]
        probabilities = 1 / (1 + np.exp(-logits))
        sparse = [IdLists(each) for each in ids]
        columns = Columns(draw(self.random, probabilities), dense.astype(np.float32), sparse)
        return Rows(SPEC, columns, probabilities)


def dlrm(bottom: Widths, top: Widths, *, seed: int, rate: float) -> Any:
    """The config of a DLRM with this learning rate of its MLPs."""
    tables, dense = OptimizerConfig(kind="rowwise_adagrad", lr=0.3), OptimizerConfig(kind="adam", lr=rate)
    return load_training_recipe("train_dlrm").Config(
        shape=SPEC, bottom=bottom, top=top, seed=seed, sparse=tables, dense=dense
    )


def main(
    *,
    rows: int = 614_400,
    judged: int = 100_000,
    seeds: tuple[int, ...] = (0, 1, 2),
    rate: float = 0.005,
) -> None:
    """Prints the AUC of each DLRM, mean ± standard deviation over seeds, and the parameters of its MLPs.

    Args:
        rows: training rows, each seen once
        judged: rows that judge
        seeds: seeds of the world, its rows and the initial weights
        rate: learning rate of the MLPs
    """
    varied = [*((bottom, FULL_TOP) for bottom in BOTTOMS), *((FULL_BOTTOM, top) for top in TOPS)]
    found: dict[tuple[Widths, Widths], list[Fitted]] = {shape: [] for shape in [*varied, (FULL_BOTTOM, FULL_TOP)]}
    best = []
    with join_world(0) as ranks:
        for seed in seeds:
            world = World(seed)
            train, others = world.rows(rows), world.rows(judged)
            best.append(others.best_auc())
            batches, judges = train.batches(SPEC), {"val": others.batches(SPEC)}
            for shape, fitted in found.items():
                fitted.append(fit("train_dlrm", dlrm(*shape, seed=seed, rate=rate), batches, judges, world=ranks))
    whole = [each.auc["val"] for each in found[FULL_BOTTOM, FULL_TOP]]
    print(f"{'bottom MLP':<20} {'top MLP':<18} {'AUC':<13}   {'minus the last':<15}   parameters of MLPs")
    for (bottom, top), fitted in found.items():
        aucs = [each.auc["val"] for each in fitted]
        less = spread([auc - other for auc, other in zip(aucs, whole, strict=True)])
        widths = f"{' '.join(map(str, bottom)):<20} {' '.join(map(str, top)):<18}"
        print(f"{widths} {spread(aucs)}   {less:<15}   {fitted[0].dense_parameters:>18,}")
    print(f"{'best possible':<39} {spread(best)}")


if __name__ == "__main__":
    tyro.cli(main)
