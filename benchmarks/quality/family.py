"""AUC, parameters and speed of the whole family on one data set: from logistic regression and MF to DLRM and DCNv2.

    python -m benchmarks.quality.family
    python -m benchmarks.quality.family --contenders HSTU "pooled history"    # on the same data, ten times as long

Users are shown items and like some of them. In the daytime, a user's lasting taste decides; in the evening, the mood of
the moment, which follows from the latest likes and skips. Besides, items differ in quality, and segments of users in
what they think of categories and prices. All of it is known, so the best possible AUC is known. A row has the user, the
item, the category, the segment, the part of the day, the price, and the user's latest ``LATEST`` events as a bag of
liked and a bag of skipped items. Each user's last events judge, all others train.

Models are those of the recipes, with MLPs of equal widths. Tables of all models have equal bytes, within 7 percent:
where there are fewer of them, they are wider. Only logistic regression has fewer, a weight for each id, and the DLRM
that knows descriptions alone: the segment and the category, not who the user or the item is nor what happened before.
HSTU and its floor, which weights the events of a history by the item, read the same events with their order and times.
The learning rates of tables and of the rest are the recipe's own times one of three numbers, which another world
chooses; a third of the lowest is tried for as long as the lowest is the best.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cached_property
from statistics import NormalDist, median
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.numpy_columns import Columns, IdLists
from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.log import EventLog, history_of
from dlrm_torchrec.datasets.sequences.samples import Window, find_samples
from dlrm_torchrec.datasets.sequences.stream import SequenceStream
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.models.hstu.config import HSTUConfig
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, History, SparseFeature
from dlrm_torchrec.train.world import World, join_world

from .training import Fitted, Rows, fit, spread

Floats = NDArray[np.float64]

USERS, ITEMS, CATEGORIES, SEGMENTS, PARTS = 300, 200, 20, 8, 2
FACTORS = 2  # of users, of items, and of moods
TASTE, MOOD, QUALITY, OPINION, PRICE = 2.0, 2.0, 0.7, 0.5, 0.4  # deviations of the parts of the logit
KEPT = 0.7  # of a mood, after an event
LATEST = 8  # events of a row's bags
PRICES = 16  # buckets, where prices are ids
EVERY_S = 60  # seconds from an event to the next one
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
DESCRIPTIONS = replace(SPEC, sparse=SPEC.sparse[2:5])  # what is known without any behaviour, of users and of items
SEQUENCES = DatasetSpec(  # the same as histories, with prices in buckets
    name="family",
    label="like",
    dense=(),
    sparse=(
        *SPEC.sparse[:1],
        *(replace(SPEC.sparse[place], multi_hot=True, pooling_factor=1 + LATEST) for place in (1, 2, 4)),
        SparseFeature(name="price", rows=PRICES, multi_hot=True, pooling_factor=1 + LATEST),
        SPEC.sparse[3],
    ),
    history=History(events=("item", "category", "part", "price"), actions=("skip", "like"), positive=("like",)),
)
SAMPLES = SamplesConfig(history=LATEST, candidates=1, batch_by="rows", least=0)
DIM, PAIR_DIM, HISTORY_DIM = 20, 36, 32  # of tables: the fewer tables, the wider
TOP = (64, 32, 1)
BATCH_SIZE = 1024
PAIR: dict[str, Any] = {"shape": SPEC, "columns": ("user", "item")}
HSTU = HSTUConfig(most_tokens=16, positions=16, input_dropout=0, dropout=0)
HISTORY: dict[str, Any] = {"shape": SEQUENCES, "dim": HISTORY_DIM, "samples": SAMPLES, "hstu": HSTU}
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {  # recipes and their options
    "logistic regression": ("train_logistic", {"shape": SPEC}),
    "DLRM, descriptions": ("train_dlrm", {"shape": DESCRIPTIONS, "bottom": (64, DIM), "top": TOP}),
    "MF": ("train_mf", {**PAIR, "dim": PAIR_DIM}),
    "NeuMF": ("train_neumf", {**PAIR, "gmf_dim": PAIR_DIM - 16, "mlp": (32, 16, 8)}),
    "FM": ("train_fm", {"shape": SPEC, "dim": DIM}),
    "DeepFM": ("train_deepfm", {"shape": SPEC, "dim": DIM, "deep": TOP}),
    "DLRM": ("train_dlrm", {"shape": SPEC, "bottom": (64, DIM), "top": TOP}),
    "DCNv2": ("train_dcnv2", {"shape": SPEC, "bottom": (64, DIM), "top": TOP}),
    "pooled history": ("train_hstu", {**HISTORY, "history": "pooled"}),
    "HSTU": ("train_hstu", HISTORY),
}
QUICK = tuple(name for name, (_, options) in CONTENDERS.items() if options["shape"] is not SEQUENCES)
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

    def histories(self, first: int, last: int, *, epochs: int, seed: int) -> list[SequenceBatch]:
        """The same rows, each with the events that its bags have."""
        users, events = self.items.shape
        edges = NormalDist().quantiles(PRICES)  # of equally many events
        log = EventLog(
            starts=np.arange(users + 1) * events,
            times=np.tile(np.arange(events) * EVERY_S, users),
            actions=(1 + self.likes.ravel()).astype(np.uint8),
            events={
                "item": self.items.ravel().astype(np.int32),
                "category": (self.items % CATEGORIES).ravel().astype(np.int32),
                "part": self.evenings.ravel().astype(np.int32),
                "price": np.searchsorted(edges, self.prices.ravel()).astype(np.int32),
            },
            users={"user": np.arange(users, dtype=np.int32), "segment": np.arange(users, dtype=np.int32) % SEGMENTS},
        )
        window = Window(first * EVERY_S, last * EVERY_S)
        samples = find_samples(log, history_of(SEQUENCES), SAMPLES, split="train", window=window)
        ranks = Ranks(BATCH_SIZE, 0, 1)
        stream = SequenceStream(SEQUENCES, samples, ranks, batch_by="rows", shuffle=True, epochs=epochs, seed=seed)
        return list(stream.batches())

    def bags(self, first: int, last: int, *, liked: bool) -> IdLists:
        """The items among the ``LATEST`` events before each event that the user liked, or skipped."""
        places = np.arange(first, last)[:, None] - np.arange(1, 1 + LATEST)  # (events, LATEST)
        counted = (self.likes[:, places.clip(0)] == liked) & (places >= 0)
        lengths = counted.sum(2).ravel()
        return IdLists(self.items[:, places.clip(0)][counted], np.concatenate([[0], np.cumsum(lengths)]))


class Drawn:
    """The batches of a world for training and for judging, as rows and as histories; each epoch has another order."""

    def __init__(self, seed: int, *, events: int, epochs: int) -> None:
        self.seed, self.epochs, self.log = seed, epochs, Log(seed, events)
        self.split, self.events = round(events * (1 - JUDGED)), events
        self.judge = self.log.rows(self.split, events)

    @cached_property
    def rows(self) -> tuple[list[Batch], list[Batch]]:
        random, train = np.random.default_rng(self.seed), self.log.rows(0, self.split)
        orders = [random.permutation(len(train.columns)) for _ in range(self.epochs)]
        batches = [batch for order in orders for batch in train.batches(SPEC, order, batch_size=BATCH_SIZE)]
        return batches, self.judge.batches(SPEC)

    @cached_property
    def histories(self) -> tuple[list[SequenceBatch], list[SequenceBatch]]:
        train = self.log.histories(0, self.split, epochs=self.epochs, seed=self.seed)
        return train, self.log.histories(self.split, self.events, epochs=1, seed=self.seed)

    def fit(self, name: str, factor: float, ranks: World) -> Fitted:
        """What a contender reaches with the learning rates of its recipe times ``factor``."""
        recipe, options = CONTENDERS[name]
        kind = load_training_recipe(recipe).Config
        usual = {each: getattr(kind(), each) for each in ("sparse", "dense")}
        rates = {each: replace(optimizer, lr=factor * optimizer.lr) for each, optimizer in usual.items()}
        config = kind(seed=self.seed, **rates, **options)
        train, judge = self.histories if config.shape.history else self.rows
        return fit(recipe, config, train, {"val": judge}, world=ranks)


def main(
    *,
    events: int = 1_000,
    epochs: int = 4,
    seeds: tuple[int, ...] = (0, 1, 2),
    contenders: tuple[str, ...] = QUICK,
) -> None:
    """Prints a line for each contender; AUC is the mean ± standard deviation over seeds.

    Args:
        events: events of each user
        epochs: passes over the training rows, each in another order
        seeds: seeds of the world, its rows, their order and the initial weights
        contenders: names of models; by default all that read rows
    """
    factors: dict[str, float] = {}
    found: dict[str, list[Fitted]] = {name: [] for name in contenders}
    best = []
    with join_world(0) as ranks:
        tuning = Drawn(TUNING, events=events, epochs=epochs)
        for name in contenders:
            tried = {factor: tuning.fit(name, factor, ranks).auc["val"] for factor in FACTORS_OF_RATES}
            while (lowest := min(tried)) == max(tried, key=tried.__getitem__):
                tried[lowest / 3] = tuning.fit(name, lowest / 3, ranks).auc["val"]
            factors[name] = max(tried, key=tried.__getitem__)
            print(name, tried, file=sys.stderr, flush=True)
        del tuning
        for seed in seeds:
            world = Drawn(seed, events=events, epochs=epochs)
            best.append(world.judge.best_auc())
            for name, fitted in found.items():
                fitted.append(world.fit(name, factors[name], ranks))
    print(f"{'model':<20} {'AUC':<13}   {'tables':>10}  {'others':>10}   samples/s   learning rates")
    for name, fitted in found.items():
        auc, speed = spread([each.auc["val"] for each in fitted]), median(each.samples_per_s for each in fitted)
        sizes = f"{fitted[0].table_parameters:>10,}  {fitted[0].dense_parameters:>10,}"
        print(f"{name:<20} {auc}   {sizes}   {speed:>9,.0f}   {factors[name]:.2g} of the recipe's")
    print(f"{'best possible':<20} {spread(best)}")


if __name__ == "__main__":
    tyro.cli(main)
