"""AUC of DLRMs whose MLPs have other widths and depths, on rows whose labels need both.

    python -m benchmarks.quality.width_and_depth

The known model that draws the labels is a DLRM itself: a random network of several layers turns the dense columns into
a vector, each id has one, and a second such network makes the logit of the products of every two vectors. So neither
dense columns nor products say anything by sums alone. One MLP is varied at a time, with the other one as large as any
in the table. All are trained once on the same rows from the same seed. "bends" in a layer are its ReLUs, which are what
makes it more than a matrix.
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

DENSE, ID_ROWS = 8, (300, 300, 300)
FACTORS = 4  # of the hidden vectors
HIDDEN, LAYERS, GAIN = 16, 3, 2.0  # of a hidden network: width, layers with a tanh, deviation of what they get
LOGIT_STD, CALIBRATION_ROWS = 2.5, 8192

SPEC = DatasetSpec(
    name="networks",
    label="label",
    dense=tuple(DenseFeature(name=f"number_{place}") for place in range(DENSE)),
    sparse=tuple(SparseFeature(name=f"id_{place}", rows=rows) for place, rows in enumerate(ID_ROWS)),
)
DIM = 16
FULL_BOTTOM, FULL_TOP = (256, 256, 256, DIM), (256, 256, 256, 1)
BOTTOMS = ((DIM,), (64, DIM), (256, DIM), (64, 64, DIM), (256, 256, DIM), (64, 64, 64, DIM))
TOPS = ((1,), (64, 1), (256, 1), (64, 64, 1), (256, 256, 1), (64, 64, 64, 1))
LEARNING_RATE = 0.003  # of the MLPs


class Network:
    """A random network; its outputs have mean 0 and deviation 1 on the rows that it begins with."""

    def __init__(self, random: np.random.Generator, inputs: Floats, outputs: int) -> None:
        self.layers: list[tuple[Floats, Floats, Floats]] = []
        values = inputs
        for layer in range(LAYERS + 1):
            weights = random.standard_normal((values.shape[1], outputs if layer == LAYERS else HIDDEN))
            found = values @ weights
            scale = (1.0 if layer == LAYERS else GAIN) / found.std(0)
            self.layers.append((weights, found.mean(0), scale))
            values = np.tanh((found - found.mean(0)) * scale)

    def __call__(self, inputs: Floats) -> Floats:
        values = inputs
        for number, (weights, mean, scale) in enumerate(self.layers):
            values = (values @ weights - mean) * scale
            values = values if number == LAYERS else np.tanh(values)
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
        return self.random.standard_normal((count, DENSE)), [self.random.integers(0, rows, count) for rows in ID_ROWS]

    def products(self, dense: Floats, ids: list[NDArray[np.int64]]) -> Floats:
        """Of every two vectors of a row: (n, 6)."""
        looked_up = [table[each] for table, each in zip(self.vectors, ids, strict=True)]
        return np.stack([(a * b).sum(1) for a, b in combinations([self.bottom(dense), *looked_up], 2)], axis=1)

    def rows(self, count: int) -> Rows:
        dense, ids = self.inputs(count)
        logits = LOGIT_STD * self.top(self.products(dense, ids))[:, 0]
        probabilities = 1 / (1 + np.exp(-logits))
        sparse = [IdLists(each) for each in ids]
        columns = Columns(draw(self.random, probabilities), dense.astype(np.float32), sparse)
        return Rows(SPEC, columns, probabilities)


def dlrm(bottom: tuple[int, ...], top: tuple[int, ...], seed: int) -> Any:
    dense = OptimizerConfig(kind="adam", lr=LEARNING_RATE)
    return load_training_recipe("train_dlrm").Config(shape=SPEC, bottom=bottom, top=top, seed=seed, dense=dense)


def main(*, rows: int = 614_400, judged: int = 100_000, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Prints the AUC of each DLRM, mean ± standard deviation over seeds, and the parameters of its MLPs.

    Args:
        rows: training rows, each seen once
        judged: rows that judge
        seeds: seeds of the world, its rows and the initial weights
    """
    shapes = [
        *((bottom, FULL_TOP) for bottom in BOTTOMS),
        *((FULL_BOTTOM, top) for top in TOPS),
        (FULL_BOTTOM, FULL_TOP),
    ]
    found: dict[Any, list[Fitted]] = {shape: [] for shape in shapes}
    best = []
    with join_world(0) as ranks:
        for seed in seeds:
            world = World(seed)
            train, others = world.rows(rows), world.rows(judged)
            best.append(others.best_auc())
            batches, judges = train.batches(SPEC), {"val": others.batches(SPEC)}
            for shape, fitted in found.items():
                fitted.append(fit("train_dlrm", dlrm(*shape, seed), batches, judges, world=ranks))
                print(shape, fitted[-1], flush=True)
    print(f"{'bottom MLP':<20} {'top MLP':<18} {'AUC':<13}   parameters of MLPs")
    for (bottom, top), fitted in found.items():
        auc = spread([each.auc["val"] for each in fitted])
        print(
            f"{' '.join(map(str, bottom)):<20} {' '.join(map(str, top)):<18} {auc}   {fitted[0].dense_parameters:>18,}"
        )
    print(f"{'best possible':<39} {spread(best)}")


if __name__ == "__main__":
    tyro.cli(main)
