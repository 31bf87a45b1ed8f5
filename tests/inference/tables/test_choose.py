"""Types of tables within a budget, against all combinations; and the errors that they are chosen by."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrm_torchrec.embeddings.tables import physical_configs
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.tables.choose import choose_types, logit_errors
from dlrm_torchrec.inference.tables.serve import table_bytes, table_weights
from dlrm_torchrec.inference.tables.types import TABLE_TYPES, rounded


def collection(dims: list[int]) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        [
            EmbeddingBagConfig(name=f"t{d}", num_embeddings=10 * d, embedding_dim=d, feature_names=[f"f{d}"])
            for d in dims
        ]
    )


@pytest.mark.parametrize("share", [0.08, 0.1, 0.2, 0.45, 0.7, 1.0])
def test_no_other_choice_within_the_budget_is_better(share: float) -> None:
    tables = collection([8, 16, 24, 32])
    torch.manual_seed(int(100 * share))
    errors: dict[str, dict[TableType, float]] = {
        config.name: dict(zip(TABLE_TYPES, torch.rand(5).square().sort().values.tolist(), strict=True))
        for config in physical_configs(tables)
    }
    configs = {config.name: config for config in physical_configs(tables)}

    def cost(types: dict[str, TableType]) -> tuple[int, float]:
        return (
            sum(table_bytes(configs[name], kind) for name, kind in types.items()),
            sum(errors[name][kind] for name, kind in types.items()),
        )

    budget = int(share * cost(dict.fromkeys(errors, "fp32"))[0])
    every = [cost(dict(zip(errors, kinds, strict=True))) for kinds in product(TABLE_TYPES, repeat=4)]
    affordable = [error for size, error in every if size <= budget]
    if not affordable:
        with pytest.raises(
            ValueError, match=rf"budget must hold all tables in their smallest types, \d+ bytes: got {budget}"
        ):
            choose_types(tables, errors, budget)
        return
    size, error = cost(choose_types(tables, errors, budget))
    assert size <= budget
    assert error == pytest.approx(min(affordable))


def test_errors_are_those_of_one_rounded_table_and_leave_the_weights_alone() -> None:
    tables = collection([6, 8])  # no int4 or int2 rows of 6 numbers: 3 and 1.5 bytes
    weights = table_weights(tables)
    kept = {name: weight.clone() for name, weight in weights.items()}
    errors = logit_errors(lambda: torch.cat([weights["t6"].sum(1), 3 * weights["t8"].sum(1)]), tables)
    assert list(errors["t6"]) == ["fp32", "fp16", "int8"]
    rated: list[tuple[str, TableType]] = [("t6", "int8"), ("t8", "int4"), ("t8", "fp16"), ("t8", "int2")]
    for name, kind in rated:
        factor = 3 if name == "t8" else 1
        change = factor * (rounded(kept[name], kind) - kept[name].detach()).double().sum(1)
        assert errors[name][kind] == pytest.approx(float(change.square().sum()) / 140, rel=1e-3)
    assert errors["t6"]["fp32"] == 0
    for name, weight in weights.items():
        assert torch.equal(weight, kept[name])
