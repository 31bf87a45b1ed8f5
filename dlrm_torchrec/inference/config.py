"""Options of a served model. This module does not import torch, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

TableType = Literal["fp32", "fp16", "int8", "int4", "int2"]  # the most accurate type first
MlpType = Literal["fp32", "dynamic", "static"]


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """How a trained model becomes a served one."""

    tables: TableType = "int8"  # Number format of the tables' rows.
    table_types: dict[str, TableType] = field(default_factory=dict)  # Formats of single tables: name and format each.
    budget_mib: float = 0  # Maximum size of all tables in MiB, for which their formats are chosen; 0 means no choice.
    mlps: MlpType = "static"  # Format of the MLPs: static int8 has ranges measured before, dynamic int8 per batch.
    bits: int = 7  # Bits of the MLPs' weights.
    outliers: float = 0  # Share of the MLPs' weights, the largest ones, that stay float in a sparse matrix.
    max_auc_loss: float = 1e-3  # Maximum fall of AUC, or rise of RMSE by this share, beside twice its standard error.


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """How a run over windows publishes its model after each of them."""

    folder: str = ""  # Folder that gets a full package first, then a delta after each window; empty means none.
    full_every: int = 0  # Windows between further full packages; 0 means none.
    quantization: QuantizationConfig = QuantizationConfig()  # How the served model differs from the trained one.
