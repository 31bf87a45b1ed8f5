"""What may be set of a served model. No torch, so that ``--help`` is quick."""

from __future__ import annotations

from typing import Literal

TableType = Literal["fp32", "fp16", "int8", "int4", "int2"]  # the most accurate first
MlpType = Literal["fp32", "dynamic", "static"]
