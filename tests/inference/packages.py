"""Packages of a model that is small enough to be written down, and raw data of every encoding to serve with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dlrm_torchrec.datasets.open import vocabularies
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.inference.package import write_package
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, Label, SparseFeature


class Sum(torch.nn.Module):
    """Sums of the dense values and a number per id, which differs between features and ids; times n for label n."""

    rows: torch.Tensor

    def __init__(self, rows: list[int], *, num_labels: int = 1, binary: bool = True) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.binary = binary
        self.register_buffer("rows", torch.tensor(rows))

    def forward(
        self, dense: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        features, rows = self.rows.size(0), dense.size(0)
        ends = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths.long())
        bag = torch.searchsorted(ends, torch.arange(ids.size(0)), right=True) - 1
        feature = bag // rows
        outside = (ids < 0) | (ids >= self.rows[feature])
        unseen = torch.zeros(features, dtype=torch.int64).index_add(0, feature, outside.long())
        terms = torch.cos(ids.float() * (feature + 1))
        if weights is not None:
            terms = terms * weights
        sums = dense.sum(1).index_add(0, bag % rows, terms)
        outputs = sums.unsqueeze(1) * torch.arange(1, self.num_labels + 1)
        return torch.sigmoid(outputs) if self.binary else outputs, unseen


def scripted(spec: DatasetSpec) -> torch.jit.ScriptModule:
    rows, binary = [feature.ids for feature in spec.sparse], spec.target == "binary"
    return torch.jit.script(Sum(rows, num_labels=len(spec.labels), binary=binary))


SPEC = DatasetSpec(
    name="log",
    label="clicked",
    more_labels=(Label(name="bought", positive_label="yes"),),
    weight="importance",
    thousands="'",
    dense=(
        DenseFeature(name="price", default=7.0),
        DenseFeature(name="age", default=3.0, log1p=True),
        DenseFeature(name="height", default=-1.0, log1p=True),
        DenseFeature(name="height?", column="height", part="missing"),
        DenseFeature(name="../height", column="height", default=None, log1p=True, standardise=True),
        DenseFeature(name="price z", column="price", default=2.0, standardise=True),
        DenseFeature(name="age of log", column="when", part="days", default=None, standardise=True),
    ),
    sparse=(
        SparseFeature(name="slot", rows=4),
        SparseFeature(name="place", rows=1000),
        SparseFeature(name="city", rows=0, encoding="vocab", min_count=2),
        SparseFeature(name="user", rows=0, encoding="vocab"),
        SparseFeature(name="item", rows=0, encoding="vocab", min_count=3),
        SparseFeature(name="paid", rows=0, encoding="vocab"),
        SparseFeature(name="session", rows=0, encoding="vocab", min_count=10**6),  # no value is known
        SparseFeature(name="device", rows=5000, encoding="hash"),
        SparseFeature(name="account", rows=2**40, encoding="hash"),
        SparseFeature(name="visitor", rows=77, encoding="hash"),
        SparseFeature(name="places", rows=1000, multi_hot=True),
        SparseFeature(name="tags", rows=0, encoding="vocab", multi_hot=True),
        SparseFeature(name="items", rows=0, encoding="vocab", min_count=2, multi_hot=True),
        SparseFeature(name="words", rows=10**6, encoding="hash", multi_hot=True),
        SparseFeature(name="accounts", rows=2, encoding="hash", multi_hot=True),
        SparseFeature(name="code/Ω 'x'", column="code", rows=0, encoding="vocab"),
        SparseFeature(name="code #", column="code", rows=99, encoding="hash"),
        SparseFeature(name="home.town", rows=0, encoding="vocab", table="towns"),
        SparseFeature(name="towns", column="visited", rows=0, encoding="vocab", table="towns", multi_hot=True),
        SparseFeature(name="price range", column="price", rows=8, encoding="bucket"),
        SparseFeature(name="height as a code", column="height", part="number", rows=0, encoding="vocab"),
        SparseFeature(name="height squared", column="height", part="squared_log", rows=0, encoding="vocab"),
        SparseFeature(name="hour", column="when", part="hour", rows=24),
        SparseFeature(name="weekday", column="when", part="weekday", rows=50, encoding="hash"),
        SparseFeature(name="scored", rows=0, encoding="vocab", multi_hot=True, weights="scores"),
        SparseFeature(name="code as it comes", column="code", rows=9, encoding="managed"),
        SparseFeature(name="visitor as it comes", column="visitor", rows=9, encoding="managed"),
        SparseFeature(name="words as they come", column="words", rows=9, encoding="managed", multi_hot=True),
    ),
)
_WORDS = ["", "a", "Kraków", "São Paulo, SP", 'the "Hague"', "x" * 300, "\U0001f600", "nan", "\0", "1"]


def raw_rows(rng: np.random.Generator, count: int) -> pa.Table:
    """Rows that preparation takes, with values that it rarely or never meets again, and with missing ones."""

    def maybe(values: Sequence[object]) -> list[Any]:
        return [None if rng.random() < 0.1 else value for value in values]

    def bags(values: Sequence[object]) -> list[Any]:
        ends = np.sort(rng.integers(0, len(values), count - 1))
        return maybe([part.tolist() for part in np.split(np.array(values, object), ends)])

    def integers(low: int, high: int) -> list[Any]:
        return maybe(rng.integers(low, high, count).tolist())

    def words() -> list[object]:
        return maybe([_WORDS[i] if i < len(_WORDS) else f"word {i}" for i in rng.geometric(0.05, count) - 1])

    heights = rng.normal(0, 9, count)
    huge = maybe((rng.integers(-40, 40, count) * 2**57 + rng.integers(-2, 2, count)).tolist())
    unsigned = maybe((rng.integers(0, 2**64, count, np.uint64) | np.uint64(1 << 63)).tolist())
    amounts = [["", "-0", f"{x:.{i % 9}g}", " 1'250.5 "][min(i % 7, 3)] for i, x in enumerate(heights)]
    scored = bags(words())
    times = [[1.6e9 + 5000.0 * i, 1.7e12 + 9e6 * i, 20240101.0][i % 3] for i in range(count)]
    codes = [[f"{i % 9}", f" {i % 9}.0", "A3", "007", "True", "NA", f"-{i % 4}"][i % 7] for i in range(count)]
    towns = [f"town {i}" if i % 3 else str(i) for i in rng.integers(0, 60, count)]
    whole = [float("nan") if value is None else float(value) for value in integers(-60, 60)]
    return pa.table(
        {
            "clicked": rng.integers(0, 2, count),
            "bought": maybe([["yes", "no"][i] for i in rng.integers(0, 2, count)]),
            "importance": rng.random(count),
            "price": pa.array(maybe([*rng.normal(0, 1e6, count - 2), float("nan"), -0.0])),
            "age": pa.array(integers(-5, 80), pa.int8()),
            "height": pa.array(maybe(amounts)),
            "slot": pa.array(integers(0, 4), pa.uint8()),
            "place": pa.array([None if value is None else str(value) for value in integers(0, 1000)]),
            "city": pa.array(words()).dictionary_encode(),
            "user": pa.array(huge, pa.int64()),
            "item": pa.array(whole),
            "paid": pa.array(maybe((rng.random(count) < 0.5).tolist())),
            "session": pa.array(words(), pa.large_string()),
            "device": pa.array(words()),
            "account": pa.array(huge, pa.int64()),
            "visitor": pa.array(unsigned, pa.uint64()),
            "places": pa.array(bags(integers(0, 1000)), pa.large_list(pa.int16())),
            "tags": pa.array(bags(words()), pa.list_(pa.string())),
            "items": pa.array(bags(huge), pa.list_(pa.int64())),
            "words": pa.array(bags(words()), pa.list_(pa.large_string())),
            "accounts": pa.array(bags(unsigned), pa.list_(pa.uint64())),
            "when": pa.array(maybe(times), pa.float64()),
            "code": pa.array(maybe(codes)),
            "home.town": pa.array(maybe(towns)),
            "visited": pa.array(bags(rng.permutation(towns).tolist())),
            "scored": pa.array(scored, pa.list_(pa.string())),
            "scores": pa.array([None if bag is None else rng.normal(size=len(bag)).tolist() for bag in scored]),
        }
    )


def pack(prepared: Path, path: Path) -> Path:
    """The package of ``Sum`` for the spec of a prepared folder."""
    spec = Manifest.load(str(prepared)).spec
    words = vocabularies(str(prepared), spec)
    facts, metrics = {"tables": "none"}, {"auc": 0.5}
    write_package(path, scripted(spec), spec, vocabularies=words, model_facts=facts, metrics=metrics)
    return path
