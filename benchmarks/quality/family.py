"""AUC, parameters and speed of the whole family on one data set: from logistic regression and MF to DLRM and DCNv2.

    python -m benchmarks.quality.family

Users are shown items and like some of them. In the daytime, a user's lasting taste decides; in the evening, the mood of
the moment, which follows from the latest likes and skips. Besides, items differ in quality, and segments of users in
what they think of categories and prices. All of it is known, so the best possible AUC is known. A row has the user, the
item, the category, the segment, the part of the day, the price, and the user's latest ``LATEST`` events as a bag of
liked and a bag of skipped items. Each user's last events judge, all others train.

Models are those of the recipes, with MLPs of equal widths. Tables of all models have equal bytes, up to one percent:
the two models of users and items alone have wider ones. Only logistic regression has fewer, a weight for each id. The
learning rates of tables and of the rest are the recipe's own times one of three numbers, which another world chooses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.numpy_columns import Columns, IdLists
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from dlrm_torchrec.train.world import World, join_world

from .training import Fitted, Rows, fit, spread

Floats = NDArray[np.float64]

USERS, ITEMS, CATEGORIES, SEGMENTS, PARTS = 4_000, 1_000, 20, 8, 2
FACTORS = 4  # of users, of items, and of moods
TASTE, MOOD, QUALITY, OPINION, PRICE = 1.6, 1.6, 0.7, 0.5, 0.4  # deviations of the parts of the logit
KEPT = 0.7  # of a mood, after an event
LATEST = 8  # events of a row's bags
JUDGED = 0.2  # share of a user's events, the last ones
BIAS = -0.5

SPEC = DatasetSpec(
    name="family",
    label="like",
    dense=(DenseFeature(name="price"),),
    sparse=(
        SparseFeature(name="user", rows=USERS),
        SparseFeature(name="item", rows=ITEMS),
        SparseFeature(name="category", rows=CATEGORIES),
        SparseFeature(name="segment", rows=SEGMENTS),
        SparseFeature(name="part", rows=PARTS),
        SparseFeature(name="liked", rows=ITEMS, multi_hot=True, pooling_factor=LATEST / 2),
        SparseFeature(name="skipped", rows=ITEMS, multi_hot=True, pooling_factor=LATEST / 2),
    ),
)
DIM, WIDE_DIM = 20, 28  # of all features, and of users and items alone
TOP = (64, 32, 1)
PAIR: dict[str, Any] = {"columns": ("user", "item")}
CONTENDERS: dict[str, dict[str, Any]] = {  # options of recipes
    "train_logistic": {},
    "train_mf": {**PAIR, "dim": WIDE_DIM},
    "train_neumf": {**PAIR, "gmf_dim": WIDE_DIM - 16, "mlp": (32, 16, 8)},
    "train_fm": {"dim": DIM},
    "train_deepfm": {"dim": DIM, "deep": TOP},
    "train_dlrm": {"bottom": (64, DIM), "top": TOP},
    "train_dcnv2": {"bottom": (64, DIM), "top": TOP},
}
FACTORS_OF_RATES = (0.3, 1.0, 3.0)
TUNING = 1_000  # the seed of the world that chooses among them


class Log:
    """All events of all users, (users, events) each, in the order in which they happened."""

    def __init__(self, seed: int, events: int) -> None:
        random = np.random.default_rng(seed)
        tastes, styles, moods = (random.standard_normal((count, FACTORS)) for count in (USERS, ITEMS, ITEMS))
        quality, opinions = random.standard_normal(ITEMS), random.standard_normal((SEGMENTS, CATEGORIES))
        slopes, segments = random.standard_normal(SEGMENTS), np.arange(USERS) % SEGMENTS
        self.items = random.integers(0, ITEMS, (USERS, events))
        self.evenings = random.integers(0, PARTS, (USERS, events))
        self.prices = random.standard_normal((USERS, events))
        self.probabilities = np.empty((USERS, events))
        self.likes = np.empty((USERS, events), bool)
        mood = np.zeros((USERS, FACTORS))
        for event in range(events):
            item, price = self.items[:, event], self.prices[:, event]
            lasting = TASTE * FACTORS**-0.5 * (tastes * styles[item]).sum(1)
            momentary = MOOD * FACTORS**-0.5 * (mood * moods[item]).sum(1)
            logits = BIAS + np.where(self.evenings[:, event], momentary, lasting)
            logits += QUALITY * quality[item] + OPINION * opinions[segments, item % CATEGORIES]
            logits += PRICE * slopes[segments] * price
            self.probabilities[:, event] = 1 / (1 + np.exp(-logits))
            self.likes[:, event] = random.random(USERS) < self.probabilities[:, event]
            step = np.where(self.likes[:, event], 1, -1)[:, None] * moods[item]
            mood = KEPT * mood + (1 - KEPT**2) ** 0.5 * step  # of variance 1

    def rows(self, first: int, last: int) -> Rows:
        """Rows of each user's events ``first`` .. ``last - 1``, user after user."""
        users = np.arange(USERS).repeat(last - first)
        items, evenings = (each[:, first:last].ravel() for each in (self.items, self.evenings))
        prices, probabilities = (each[:, first:last].ravel() for each in (self.prices, self.probabilities))
        features = {"user": users, "item": items, "category": items % CATEGORIES, "segment": users % SEGMENTS}
        sparse = [*map(IdLists, [*features.values(), evenings]), self.bags(first, last, liked=True)]
        sparse.append(self.bags(first, last, liked=False))
        labels = self.likes[:, first:last].ravel().astype(np.float32)
        columns = Columns(labels, prices.astype(np.float32)[:, None], sparse)
        return Rows(SPEC, columns, probabilities)

    def bags(self, first: int, last: int, *, liked: bool) -> IdLists:
        """The items among the ``LATEST`` events before each event that the user liked, or skipped."""
        places = np.arange(first, last)[:, None] - np.arange(1, 1 + LATEST)  # (events, LATEST)
        counted = (self.likes[:, places] == liked) & (places >= 0)
        lengths = counted.sum(2).ravel()
        return IdLists(self.items[:, places][counted], np.concatenate([[0], np.cumsum(lengths)]))


@dataclass(frozen=True)
class Drawn:
    """The batches of a world, and the best AUC on those that judge."""

    seed: int
    train: list[Batch]
    judge: list[Batch]
    best: float

    @classmethod
    def of(cls, seed: int, *, events: int, epochs: int) -> Drawn:
        """The world of a seed; each epoch has another order."""
        log, split = Log(seed, events), round(events * (1 - JUDGED))
        train, judge = log.rows(0, split), log.rows(split, events)
        random = np.random.default_rng(seed)
        orders = [random.permutation(len(train.columns)) for _ in range(epochs)]
        batches = [batch for order in orders for batch in train.batches(SPEC, order)]
        return cls(seed, batches, judge.batches(SPEC), judge.best_auc())

    def fit(self, name: str, factor: float, ranks: World) -> Fitted:
        """What a recipe reaches with its learning rates times ``factor``."""
        recipe = load_training_recipe(name)
        usual = recipe.Config()
        rates = {
            kind: replace(getattr(usual, kind), lr=factor * getattr(usual, kind).lr) for kind in ("sparse", "dense")
        }
        config = recipe.Config(shape=SPEC, seed=self.seed, **rates, **CONTENDERS[name])
        return fit(name, config, self.train, {"val": self.judge}, world=ranks)


def main(
    *,
    events: int = 100,
    epochs: int = 2,
    seeds: tuple[int, ...] = (0, 1, 2),
    contenders: tuple[str, ...] = tuple(CONTENDERS),
) -> None:
    """Prints a line for each contender; AUC is the mean ± standard deviation over seeds.

    Args:
        events: events of each user
        epochs: passes over the training rows, each in another order
        seeds: seeds of the world, its rows, their order and the initial weights
        contenders: recipes
    """
    with join_world(0) as ranks:
        tuning = Drawn.of(TUNING, events=events, epochs=epochs)
        worlds = [Drawn.of(seed, events=events, epochs=epochs) for seed in seeds]
        print(f"{'recipe':<16} {'AUC':<13}   parameters of tables, others   samples/s   learning rates")
        for name in contenders:
            tried = {factor: tuning.fit(name, factor, ranks).auc["val"] for factor in FACTORS_OF_RATES}
            factor = max(tried, key=tried.__getitem__)
            fitted = [world.fit(name, factor, ranks) for world in worlds]
            auc, speed = spread([each.auc["val"] for each in fitted]), median(each.samples_per_s for each in fitted)
            sizes = f"{fitted[0].table_parameters:>20,}   {fitted[0].dense_parameters:>6,}"
            print(f"{name:<16} {auc}   {sizes}   {speed:>9,.0f}   {factor} of the recipe's", flush=True)
    print(f"{'best possible':<16} {spread([world.best for world in worlds])}")


if __name__ == "__main__":
    tyro.cli(main)
