"""The models that the proof trains, and batches of random ids for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any, TypeVar

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.recipe import TrainingRecipe, load_training_recipe
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.train.config import OptimizerConfig

AnyBatch = TypeVar("AnyBatch", Batch, SequenceBatch)
# rows of Criteo Kaggle's 26 columns, capped at 100,000
KAGGLE_ROWS = [1460, 583, 100000, 100000, 305, 24, 12517, 633, 3, 93145, 5683, 100000, 3194]
KAGGLE_ROWS += [27, 14992, 100000, 10, 5652, 2173, 4, 100000, 18, 15, 100000, 105, 100000]
ROWS = 45_840_617  # of a training set, for which a run weighs what its choices cost: those of Criteo Kaggle
MOST_ROWS = 4_000_000  # of a table of MLPerf's model, so that tables and Adagrad's moments fit 80 GB


def spec_of(rows: Sequence[int], lookups: Sequence[int], *, dense: int = 13) -> DatasetSpec:
    return DatasetSpec(
        name="proof",
        label="click",
        dense=tuple(DenseFeature(name=f"dense_{i}") for i in range(dense)),
        sparse=tuple(
            SparseFeature(name=f"f{i}", rows=count, multi_hot=bag > 1, pooling_factor=bag)
            for i, (count, bag) in enumerate(zip(rows, lookups, strict=True))
        ),
    )


def small() -> tuple[TrainingRecipe, Any]:
    """train_dlrm with four tables so small that every batch of ``full_batch`` touches all their rows."""
    recipe = load_training_recipe("train_dlrm")
    spec = spec_of([60, 47, 33, 3], [1, 1, 3, 1], dense=4)
    wanted = ShardingConfig(kind="table_wise")  # of which backward updates the tables
    return recipe, replace(recipe.Config(), shape=spec, batch_size=128, bottom=(16, 16), top=(16, 1), sharding=wanted)


def full_batch(spec: DatasetSpec, size: int, seed: int) -> Batch:
    """Every row of every table, and more, in random bags of which some are empty in lists; random labels."""
    draw = torch.Generator().manual_seed(seed)
    values, lengths = [], []
    for feature in spec.sparse:
        number = round(size * feature.pooling_factor)
        ids = torch.cat([torch.arange(feature.rows), torch.randint(feature.rows, (number,), generator=draw)])[:number]
        values.append(ids[torch.randperm(number, generator=draw)])
        bags = torch.randint(size, (number,), generator=draw) if feature.multi_hot else torch.arange(size)
        lengths.append(torch.bincount(bags, minlength=size))
    features = KeyedJaggedTensor(
        keys=[feature.name for feature in spec.sparse], values=torch.cat(values), lengths=torch.cat(lengths)
    )
    dense = torch.randn(size, len(spec.dense), generator=draw)
    return Batch(dense, features, torch.randint(2, (size,), generator=draw).float(), size, size)


def random_batches(spec: DatasetSpec, size: int, *, count: int, device: torch.device) -> list[Batch]:
    """Bags of equal length, with uniform ids."""
    draw = torch.Generator(device).manual_seed(1)
    batches = []
    for _ in range(count):
        bags = [(feature, round(feature.pooling_factor)) for feature in spec.sparse]
        ids = [torch.randint(each.rows, (size * bag,), generator=draw, device=device) for each, bag in bags]
        features = KeyedJaggedTensor(
            keys=[feature.name for feature, _ in bags],
            values=torch.cat(ids),
            lengths=torch.cat([torch.full((size,), bag, device=device) for _, bag in bags]),
        )
        dense = torch.randn(size, len(spec.dense), generator=draw, device=device)
        labels = torch.randint(2, (size,), generator=draw, device=device).float()
        batches.append(Batch(dense, features, labels, size, size))
    return batches


def pinned(batches: list[AnyBatch]) -> list[AnyBatch]:
    """The batches in the host's memory, from which a GPU reads by itself."""
    on_host = [batch.to(torch.device("cpu")) for batch in batches]
    return [batch.pin_memory() for batch in on_host] if torch.cuda.is_available() else on_host


def repeated(batches: list[Batch], count: int) -> Any:
    return islice(cycle(batches), count)


def kaggle(*, toy: bool, batch_size: int = 2048) -> tuple[TrainingRecipe, Any]:
    """train_dlrm with the tables of Criteo Kaggle, capped at 100,000 rows."""
    rows = [min(count, 300) for count in KAGGLE_ROWS[:6]] if toy else KAGGLE_ROWS
    recipe = load_training_recipe("train_dlrm")
    cfg = replace(
        recipe.PRESETS["criteo-kaggle"],
        data="synthetic",
        shape=spec_of(rows, [1] * len(rows)),
        rows=64 if toy else ROWS,
        batch_size=64 if toy else batch_size,
        sparse=OptimizerConfig(kind="rowwise_adagrad", lr=0.01),
    )
    return recipe, replace(cfg, bottom=(32, 16), top=(32, 1)) if toy else cfg


def rm(*, toy: bool) -> tuple[TrainingRecipe, Any]:
    """train_dlrm with 32 tables of 200,000 rows, dim 64, and 20 ids a bag."""
    recipe = load_training_recipe("train_dlrm")
    tables, rows, bag = (3, 300, 4) if toy else (32, 200_000, 20)
    return recipe, replace(
        recipe.Config(),
        shape=spec_of([rows] * tables, [bag] * tables),
        rows=64 if toy else ROWS,
        batch_size=64 if toy else 2048,
        bottom=(256, 128, 64),
        top=(128, 64, 1),
    )


def mlperf(*, toy: bool) -> tuple[TrainingRecipe, Any]:
    """MLPerf's DLRM-DCNv2 with tables of at most ``MOST_ROWS`` rows."""
    recipe = load_training_recipe("train_dcnv2")
    cfg = recipe.PRESETS["mlperf"]
    most = 200 if toy else MOST_ROWS
    shrunk = tuple(replace(feature, rows=min(feature.rows, most)) for feature in cfg.shape.sparse)
    cfg = replace(cfg, data="synthetic", shape=replace(cfg.shape, sparse=shrunk), rows=32 if toy else ROWS)
    if toy:
        return recipe, replace(cfg, batch_size=32, bottom=(16, 16), top=(16, 1), cross_rank=4)
    return recipe, cfg


def rmc2(*, toy: bool) -> tuple[TrainingRecipe, Any]:
    """RMC2 of DeepRecSys: 32 tables with 120 ids a bag."""
    recipe = load_training_recipe("train_rmc")
    cfg = recipe.Config() if toy else recipe.PRESETS["rmc2"]
    return recipe, replace(cfg, batch_size=64 if toy else 4096, rows=64 if toy else ROWS)
