"""Chooses the type of each table within a budget of bytes, by how much each type changes the model's logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torchrec.modules.embedding_modules import EmbeddingCollection

from dlrm_torchrec.embeddings.tables import Tables, physical_configs
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.tables.serve import rounded_rows, table_bytes, table_weights
from dlrm_torchrec.inference.tables.types import TABLE_TYPES, fits, rounded

_UNITS = 10_000
Errors = dict[str, dict[TableType, float]]


@torch.no_grad()
def logit_errors(predict: Callable[[], torch.Tensor], tables: Tables | EmbeddingCollection) -> Errors:
    """Mean squared change of ``predict``'s logits when only one table is stored as a type, for each table and type.

    ``predict`` must run the model of ``tables`` on the same rows at every call. The weights are restored at the end.
    This needs memory for one more copy of the largest table.
    """
    exact = predict().double()
    weights, errors = table_weights(tables), Errors()
    for config in physical_configs(tables):
        rows = weights[config.name][: rounded_rows(config)]
        kept = rows.clone()
        errors[config.name] = {}
        for kind in TABLE_TYPES:
            if fits(kind, config.embedding_dim):
                rows.copy_(rounded(kept, kind))
                errors[config.name][kind] = float((predict().double() - exact).square().mean())
        rows.copy_(kept)
    return errors


def choose_types(
    tables: Tables | EmbeddingCollection, errors: Mapping[str, Mapping[TableType, float]], budget: int
) -> dict[str, TableType]:
    """The type of each table with the least sum of ``errors``, such that all tables need at most ``budget`` bytes.

    This solves a multiple-choice knapsack problem by dynamic programming over ``_UNITS`` parts of the budget; bytes are
    rounded up to whole parts. Raises ValueError when the tables do not fit even with their smallest types.
    """
    sizes = {
        config.name: {kind: table_bytes(config, kind) for kind in errors[config.name]}
        for config in physical_configs(tables)
    }
    unit = -(-budget // _UNITS) or 1
    least = np.zeros(budget // unit + 1)  # the least error of the tables so far, in 0, 1, ... units
    steps: list[tuple[str, list[TableType], npt.NDArray[np.int64]]] = []
    for name, of_kind in sizes.items():
        kinds = list(of_kind)
        options = np.full((len(kinds), len(least)), np.inf)
        for option, kind in zip(options, kinds, strict=True):
            units = -(-of_kind[kind] // unit)
            option[units:] = least[: max(len(least) - units, 0)] + errors[name][kind]
        steps.append((name, kinds, options.argmin(0)))
        least = options.min(0)
    if not np.isfinite(least[-1]):
        smallest = sum(min(of_kind.values()) for of_kind in sizes.values())
        raise ValueError(
            f"budget must hold all tables in their smallest types, {smallest} bytes: got {budget}; raise it, or train "
            "compositional tables"
        )
    chosen, left = dict[str, TableType](), len(least) - 1
    for name, kinds, option in reversed(steps):
        chosen[name] = kinds[option[left]]
        left -= -(-sizes[name][chosen[name]] // unit)
    return {name: chosen[name] for name in sizes}
