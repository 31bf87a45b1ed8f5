"""A model of next items with random weights, its package, raw histories, and the best items by a loop in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.next_items import next_item_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import build_sequence_tables
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.package import write_package
from dlrm_torchrec.inference.ranking.next_item import NextItemScorer
from dlrm_torchrec.inference.scoring import script
from dlrm_torchrec.inference.tables.ids import serve_id_tables
from dlrm_torchrec.inference.tables.serve import table_weights
from dlrm_torchrec.models.hstu.config import HSTUConfig
from dlrm_torchrec.models.hstu.next_item import HSTUNextItem
from dlrm_torchrec.models.hstu.next_item_model import NextItemModel, NextItemScores
from dlrm_torchrec.schema import DatasetSpec
from tests.inference.sequences.histories import ITEMS, PLAIN, draw, write_vocabularies

SPEC = next_item_spec(PLAIN)
SERVED = DatasetSpec.from_json(SPEC.to_json() | {"sparse": SPEC.to_json()["sparse"][:1]})
SAMPLES = SamplesConfig(history=7, held_out="last")
SIZES = HSTUConfig(dim=6, heads=1, key_dim=4, value_dim=4, layers=2, most_tokens=8, positions=8)
NAMES = [feature.name for feature in SPEC.sparse]


def trained(tables: TablesConfig = TablesConfig(), *, seed: int = 0) -> tuple[NextItemModel, Any]:
    """The model, whose rows have two numbers more than it reads, and its tables."""
    torch.manual_seed(seed)
    collection = build_sequence_tables(SPEC.tables(dim=8), tables)
    collection.to_empty(device="cpu")
    for weight in table_weights(collection).values():
        nn.init.normal_(weight.data)
    next_item = HSTUNextItem(SIZES)
    for name, parameter in next_item.named_parameters():
        if "bias" in name:  # of places and times, which are small at first
            nn.init.normal_(parameter.data)
    return NextItemModel(collection, NextItemScores(next_item, *NAMES)).eval(), collection


def vectors(model: NextItemModel) -> torch.Tensor:
    """The rows of all items as the model reads them, (ids, dim) float64; its tables may be compositional."""
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    count = SPEC.sparse[0].rows
    ids = KeyedJaggedTensor(keys=NAMES, values=torch.arange(count), lengths=torch.tensor([count, 0]))
    with torch.no_grad():
        return model.tables(ids)[NAMES[0]].values()[:, : SIZES.dim].double()


def package(folder: Path, model: NextItemModel, tables: Any, types: TableType = "fp32") -> Path:
    kinds = dict.fromkeys(table_weights(tables), types)
    program = script(NextItemScorer(serve_id_tables(model, tables, kinds, NAMES), SERVED))
    write_package(
        folder / "package", program, SERVED, vocabularies=write_vocabularies(folder, SERVED), model_facts={},
        metrics={}, samples=vars(SAMPLES), ranks="item",
    )  # fmt: skip
    return folder / "package"


def users(count: int, seed: int, *, longest: int = 12) -> list[dict[str, Any]]:
    """Raw histories of so many users, the first of one event."""
    rows = [row for row in draw(3 * count, seed, longest=longest) if row["track"]][:count]
    rows[0] |= {name: rows[0][name][:1] for name in ("track", "time")}
    return [{name: row[name] for name in ("track", "time", "candidates.time")} for row in rows]


@torch.no_grad()
def scores(model: NextItemModel, table: torch.Tensor, row: Mapping[str, Any]) -> dict[str, float]:
    """The score of every item that may come next, by its value; nothing reads events of unseen ones."""
    events = [event for event in zip(row["track"], row["time"], strict=True) if event[0] in ITEMS][-SAMPLES.history :]
    ids = torch.tensor([2 + ITEMS.index(item) for item, _ in events] + [0])
    times = torch.tensor([*(time for _, time in events), row["candidates.time"]])
    next_item = model.score.next_item.double()
    state = next_item(table[ids], times, torch.tensor([len(ids)]))[-2].double()
    next_item.float()
    cosines = torch.cosine_similarity(state[None], table) / next_item.temperature
    seen = {item for item, _ in events}
    return {item: float(cosines[2 + place]) for place, item in enumerate(ITEMS) if item not in seen}


def check(expected: Mapping[str, float], items: list[str], found: list[float], *, most: int) -> None:
    """Raises AssertionError unless the items are the best, with their scores, but for the rounding of float32."""
    assert len(set(items)) == len(items) == len(found) == min(most, len(expected))
    np.testing.assert_allclose(found, sorted(expected.values(), reverse=True)[:most], rtol=0, atol=5e-5)
    np.testing.assert_allclose(found, [expected[item] for item in items], rtol=0, atol=5e-5)
