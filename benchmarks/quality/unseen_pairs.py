"""AUC on pairs of values that training never saw together: weights of pairs, MF, and a factorisation machine.

    python -m benchmarks.quality.unseen_pairs

Users, items and places have an effect each, and every two of them fit by the product of hidden vectors; both together
are the logit of a known model, so the best possible AUC is known. A fifth of all pairs of values is withheld: training
has only rows without any of them. Models are judged on other such rows, and on rows whose three pairs are all withheld:
logistic regression; logistic regression with a weight for each pair of values, as a polynomial kernel has; matrix
factorisation, which knows users and items only; and the factorisation machine. The best AUC of a model that does not
know places is known, too: it is that of the mean probability over all places. The learning rate of each contender's
tables is chosen among four by a world of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from dlrm_torchrec.datasets.numpy_columns import Columns, IdLists
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.schema import DatasetSpec, SparseFeature
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.world import World as Ranks
from dlrm_torchrec.train.world import join_world

from .training import Fitted, Rows, auc_of, draw, fit, spread

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

SIZES = {"user": 400, "item": 300, "place": 30}
PAIRS = tuple(combinations(SIZES, 2))
FACTORS = 4  # of the hidden vectors
ALONE, TOGETHER = 1.0, 0.9  # standard deviations of each effect, and of each product
BIAS = -1.0
WITHHELD = 0.2  # of the pairs of every two features
RATES = (0.1, 0.3, 1.0, 3.0)  # of learning
TUNING = 1_000  # the seed of the world that chooses among them

VALUES = DatasetSpec(
    name="pairs", label="label", dense=(), sparse=tuple(SparseFeature(name=n, rows=rows) for n, rows in SIZES.items())
)
CROSSED = DatasetSpec(
    name="crossed",
    label="label",
    dense=(),
    sparse=(*VALUES.sparse, *(SparseFeature(name=f"{a} x {b}", rows=SIZES[a] * SIZES[b]) for a, b in PAIRS)),
)


class World:
    """The effects and vectors of all values, and the pairs that training does not see."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.effects = {name: ALONE / len(SIZES) ** 0.5 * random.standard_normal(rows) for name, rows in SIZES.items()}
        self.vectors = {name: random.standard_normal((rows, FACTORS)) for name, rows in SIZES.items()}
        withheld = {(a, b): random.random((SIZES[a], SIZES[b])) < WITHHELD for a, b in PAIRS}
        users, items, places = (withheld[pair] for pair in PAIRS)  # user and item, user and place, item and place
        number = users[:, :, None].astype(int) + items[:, None, :] + places[None]  # of pairs that are withheld
        self.triples = {name: np.argwhere(number == count) for name, count in (("seen", 0), ("new", len(PAIRS)))}
        self.random = random

    def probabilities(self, ids: dict[str, Ids]) -> Floats:
        """P(label = 1) of rows with these ids."""
        logits = BIAS + sum(self.effects[name][ids[name]] for name in SIZES)
        for a, b in PAIRS:
            logits = logits + TOGETHER * FACTORS**-0.5 * (self.vectors[a][ids[a]] * self.vectors[b][ids[b]]).sum(1)
        return 1 / (1 + np.exp(-logits))

    def without_places(self, ids: dict[str, Ids]) -> Floats:
        """P(label = 1) of a user and an item, at a place that is not known."""
        count = SIZES["place"]
        everywhere = [self.probabilities({**ids, "place": np.full_like(ids["place"], place)}) for place in range(count)]
        return np.mean(everywhere, axis=0)

    def ids(self, kind: str, count: int) -> dict[str, Ids]:
        """Random values of so many rows: those of pairs that are all in training, or all withheld from it."""
        triples = self.triples[kind]
        chosen = triples[self.random.integers(0, len(triples), count)]
        return dict(zip(SIZES, chosen.T, strict=True))

    def rows(self, ids: dict[str, Ids]) -> Rows:
        """Rows with ids of values and pairs, and drawn labels."""
        probabilities = self.probabilities(ids)
        crosses = [ids[a] * SIZES[b] + ids[b] for a, b in PAIRS]
        sparse = [IdLists(each) for each in [*ids.values(), *crosses]]
        labels = draw(self.random, probabilities)
        return Rows(CROSSED, Columns(labels, np.empty((len(labels), 0), np.float32), sparse), probabilities)


@dataclass(frozen=True)
class Contender:
    """A recipe with its options, and the columns that it sees."""

    recipe: str
    options: dict[str, Any]
    spec: DatasetSpec = VALUES

    def config(self, *, rate: float, seed: int) -> Any:
        """The recipe's config with this learning rate of the tables."""
        tables = OptimizerConfig(kind="rowwise_adagrad", lr=rate)
        return load_training_recipe(self.recipe).Config(shape=self.spec, sparse=tables, seed=seed, **self.options)


CONTENDERS = {
    "logistic regression": Contender("train_logistic", {}),
    "the same with a weight for each pair": Contender("train_logistic", {}, CROSSED),
    "matrix factorisation": Contender("train_mf", {"dim": 8, "columns": ("user", "item")}),
    "factorisation machine": Contender("train_fm", {"dim": 8}),
}


@dataclass(frozen=True)
class Drawn:
    """The rows of a world, and the best AUC on those that judge."""

    train: Rows
    judged: dict[str, Rows]
    best: dict[str, float]
    best_without_places: dict[str, float]

    @classmethod
    def of(cls, seed: int, *, rows: int, judged: int) -> Drawn:
        world = World(seed)
        train = world.rows(world.ids("seen", rows))
        ids = {kind: world.ids(kind, judged) for kind in world.triples}
        others = {kind: world.rows(each) for kind, each in ids.items()}
        best = {kind: each.best_auc() for kind, each in others.items()}
        blind = {kind: auc_of(world.without_places(ids[kind]), each.columns.labels) for kind, each in others.items()}
        return cls(train, others, best, blind)

    def fit(self, contender: Contender, *, rate: float, seed: int, ranks: Ranks) -> Fitted:
        """What a contender reaches with this learning rate."""
        judged = {kind: each.batches(contender.spec) for kind, each in self.judged.items()}
        config = contender.config(rate=rate, seed=seed)
        return fit(contender.recipe, config, self.train.batches(contender.spec), judged, world=ranks)


def main(*, rows: int = 819_200, judged: int = 100_000, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Prints AUCs on pairs that training had and on pairs that it had not, mean ± standard deviation over seeds.

    Args:
        rows: training rows, each seen once
        judged: rows of either kind that judge
        seeds: seeds of the world, its rows and the initial weights
    """
    with join_world(0) as ranks:
        tuning = Drawn.of(TUNING, rows=rows, judged=judged)
        worlds = {seed: Drawn.of(seed, rows=rows, judged=judged) for seed in seeds}
        print(f"{'AUC':<38} {'pairs seen':<13}   {'never seen':<13}   parameters  learning rate")
        for name, contender in CONTENDERS.items():
            tried = {rate: tuning.fit(contender, rate=rate, seed=TUNING, ranks=ranks).auc["seen"] for rate in RATES}
            rate = max(tried, key=tried.__getitem__)
            fitted = [world.fit(contender, rate=rate, seed=seed, ranks=ranks) for seed, world in worlds.items()]
            aucs = "   ".join(spread([each.auc[kind] for each in fitted]) for kind in ("seen", "new"))
            parameters = fitted[0].table_parameters + fitted[0].dense_parameters
            print(f"{name:<38} {aucs}   {parameters:>10,}  {rate:>13}", flush=True)
    for name in ("best", "best_without_places"):
        aucs = "   ".join(spread([getattr(world, name)[kind] for world in worlds.values()]) for kind in ("seen", "new"))
        print(f"{name.replace('_', ' '):<38} {aucs}")


if __name__ == "__main__":
    tyro.cli(main)
