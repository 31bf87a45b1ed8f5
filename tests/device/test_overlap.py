"""On a GPU, a sharding's vectors are sent before the next sharding's tables are read; on a CPU, threads read all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType

from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from tests.device.cases import OPERATIONS, Case, moved
from tests.device.double import META, Double
from tests.device.on_device import one_rank, placed, sharded, stand_in
from tests.sharding.sharded import Wrapped

CASE = Case(OPERATIONS[0], PoolingType.SUM, "no", 3)


@pytest.fixture(autouse=True)
def _one_rank() -> Iterator[None]:
    with one_rank():
        yield


@pytest.mark.parametrize("compositional", [True, False])
def test_order(compositional: bool) -> None:
    configs = CASE.configs() if compositional else [plain(config) for config in CASE.configs()]
    with Double() as device:
        tables = CompositionalEmbeddingBagCollection(configs, device=META)
        apply_in_backward(torch.optim.SGD, tables.parameters(), {"lr": 0.1})
        plan = placed(tables, "table_wise")
        by_rows = placed(tables, "row_wise")
        plan |= {name: by_rows[name] for name in list(plan)[::2]}
        model = sharded(Wrapped(tables), ShardingPlan({"tables": plan}), torch.optim.SGD)
        stand_in(model, device)
        ids = moved(CASE.batch())
        model(ids)  # creates what sends vectors
        calls: list[str] = []
        collection = model.module.tables
        for what, parts in (("read", collection._lookups), ("send", collection._output_dists)):
            for part in parts:
                part.register_forward_pre_hook(lambda *_, what=what: calls.append(what))
        model(ids)
    assert calls == ["read", "send", "read", "send"]


def plain(config: EmbeddingBagConfig) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=config.name,
        num_embeddings=config.num_embeddings,
        embedding_dim=config.embedding_dim,
        feature_names=config.feature_names,
    )
