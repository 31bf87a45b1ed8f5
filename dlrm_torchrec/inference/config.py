"""Options of a served model. This module does not import torch, so that ``--help`` is quick."""

from __future__ import annotations

from typing import Literal

TableType = Literal["fp32", "fp16", "int8", "int4", "int2"]  # the most accurate type first
MlpType = Literal["fp32", "dynamic", "static"]
