"""A small model that changes from day to day, and its package on each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.operations import Mult
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import QuotientRemainder
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.managed.collection import ManagedEmbeddingBagCollection
from dlrm_torchrec.embeddings.managed.id_map import IdMap
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig, Rules
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.lookups import Categories, hashed_ids
from dlrm_torchrec.inference.mlps.quantize import quantize_mlps
from dlrm_torchrec.inference.package import Release, write_package
from dlrm_torchrec.inference.scoring import Scorer, script
from dlrm_torchrec.inference.tables.serve import serve_tables, table_weights
from dlrm_torchrec.raw_values import vocabulary_digest
from dlrm_torchrec.schema import MANAGED_IDS, DatasetSpec, DenseFeature, SparseFeature

DIM, PLACES, SHOPS, CODED, VISITORS = 8, 300, 90, 20_000, 8_320
TYPES: dict[str, TableType] = {"word": "int8", "place": "int4", "shop": "fp16", "coded": "int8", "visitor": "int8"}


class Evolving:
    """Each day, some rows, the MLPs, some values of the vocabulary and some codes change, and values are added."""

    def __init__(self, seed: int, *, words: int = 200, static: bool = True) -> None:
        """``static``: MLPs are int8, else float32, which the other rows of a batch do not change."""
        self.static = static
        self.random = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.day, self.words = 0, [f"w{i}" for i in range(words)]
        self.order = self.random.permutation(CODED)  # codes of ids
        rules = Rules(update_every=2)
        self.map = IdMap(
            ManagedEmbeddingBagConfig(
                num_embeddings=VISITORS, embedding_dim=DIM, name="visitor", num_ids=MANAGED_IDS, rules=rules
            )
        )
        self._visits()
        torch.manual_seed(seed)
        self.rows: dict[str, torch.Tensor] = {}
        self.dense = DLRM(self._tables(), 2, [64, DIM], [64, 64, 1]).state_dict()
        for name, rows in self._sizes().items():
            self.rows[name] = torch.randn(rows, DIM, generator=self.generator)

    def _sizes(self) -> dict[str, int]:
        return {name: len(weight) for name, weight in table_weights(self._tables()).items()}

    def _tables(self) -> ManagedEmbeddingBagCollection:
        def config(name: str, rows: int) -> dict[str, Any]:
            return {"name": name, "num_embeddings": rows, "embedding_dim": DIM, "feature_names": [name]}

        codes = [torch.from_numpy(code) for code in np.divmod(self.order, 150)]
        tables = ManagedEmbeddingBagCollection(
            [
                EmbeddingBagConfig(**config("word", len(self.words) + 2)),
                EmbeddingBagConfig(**config("place", PLACES)),
                CompositionalEmbeddingBagConfig(
                    **config("shop", SHOPS), partition=QuotientRemainder(SHOPS, 9), operation=Mult()
                ),
                ManagedEmbeddingBagConfig(
                    **config("visitor", VISITORS), num_ids=MANAGED_IDS, rules=Rules(update_every=2)
                ),
                CompositionalEmbeddingBagConfig(**config("coded", CODED), partition=Assigned(codes), operation=Mult()),
            ]
        )
        tables.to_empty(device="cpu")
        tables.maps["visitor"] = self.map
        return tables

    def _visits(self) -> None:
        """Some visitors of the day get rows, in place of older ones."""
        values = Categories.of(pa.array(range(self.day * 300, self.day * 300 + 3000)))
        (ids,) = hashed_ids([(values, MANAGED_IDS)])
        for _ in range(2):
            self.map.train_step(torch.from_numpy(ids))
        self.map.settle()

    def next_day(self) -> None:
        self.day += 1
        self._visits()
        for rows in self.rows.values():
            some = torch.from_numpy(self.random.permutation(len(rows))[: self.random.integers(len(rows) // 4)])
            rows[some] = torch.randn(len(some), DIM, generator=self.generator)
        for name, value in self.dense.items():
            if "embedding_bag" not in name:
                value += 0.01 * torch.randn(value.shape, generator=self.generator)
        for place in self.random.permutation(len(self.words))[:5]:
            self.words[place] = f"replaced on {self.day} at {place}"
        self.words += [f"added on {self.day}: {i}" for i in range(self.random.integers(30))]
        if self.day % 3 == 0:
            del self.words[-20:]
        if self.day % 2 == 0:
            i, j = self.random.integers(CODED, size=2)
            self.order[[i, j]] = self.order[[j, i]]
        word = torch.zeros(len(self.words) + 2, DIM)
        kept = min(len(word), len(self.rows["word"]))
        word[:kept] = self.rows["word"][:kept]
        word[kept:] = torch.randn(len(word) - kept, DIM, generator=self.generator)
        self.rows["word"] = word

    def spec(self) -> DatasetSpec:
        sizes = {"word": len(self.words) + 2, "place": PLACES, "shop": SHOPS, "coded": CODED, "visitor": VISITORS}
        digest = vocabulary_digest([pa.array(self.words)])
        return DatasetSpec(
            name="evolving",
            label="click",
            dense=(DenseFeature(name="a"), DenseFeature(name="b")),
            sparse=tuple(
                SparseFeature(
                    name=name,
                    rows=rows,
                    encoding="vocab" if name == "word" else "managed" if name == "visitor" else "id",
                    vocabulary=digest if name == "word" else "",
                    multi_hot=name == "place",
                )
                for name, rows in sizes.items()
            ),
        )

    def program(self) -> torch.jit.ScriptModule:
        tables, spec = self._tables(), self.spec()
        model: nn.Module = DLRM(tables, 2, [64, DIM], [64, 64, 1]).eval()
        model.load_state_dict({name: value for name, value in self.dense.items() if "embedding_bag" not in name}, False)
        for name, weight in table_weights(tables).items():
            weight.data.copy_(self.rows[name])
        names = [feature.name for feature in spec.sparse]
        calibration = torch.Generator().manual_seed(self.day)
        dense = torch.randn(64, 2, generator=calibration)
        ids = torch.randint(SHOPS, (64 * len(names),), generator=calibration)
        bags = KeyedJaggedTensor(keys=names, values=ids, lengths=torch.ones(len(ids), dtype=torch.int32))
        model = serve_tables(model, tables, TYPES, names)
        if self.static:
            model = quantize_mlps(model, "static", [(dense, bags)])
        return script(Scorer(model, spec))

    def parts(self, folder: Path) -> dict[str, Any]:
        """The other arguments of ``write_package``."""
        words = folder / "words.parquet"
        pq.write_table(pa.table({"value": self.words}), words)
        return {"vocabularies": {"word": str(words)}, "model_facts": {"day": self.day}, "metrics": {"auc": self.day}}

    def write(self, path: Path) -> Path:
        """The package of this day."""
        release = Release(version=self.day, window=f"day {self.day}", trained_until="2024-05-01")
        write_package(path, self.program(), self.spec(), **self.parts(path.parent), release=release)
        return path

    def columns(self, seed: int, rows: int) -> dict[str, list[Any]]:
        """Raw values of requests, of any day."""
        random = np.random.default_rng(seed)
        words = [*self.words, "w1", "w7", "nowhere"]
        return {
            "a": random.normal(size=rows).tolist(),
            "b": random.normal(size=rows).tolist(),
            "word": [words[i] for i in random.integers(len(words), size=rows)],
            "place": [random.integers(PLACES, size=size).tolist() for size in random.integers(4, size=rows)],
            "shop": random.integers(SHOPS, size=rows).tolist(),
            "coded": random.integers(CODED, size=rows).tolist(),
            "visitor": (self.day * 300 + random.integers(-900, 3000, size=rows)).tolist(),
        }
