"""Tables in fp16, and dense parts in bf16 and TF32, against float32 on the CPU."""

from __future__ import annotations

from dataclasses import replace

import torch

from dlrm_torchrec.embeddings.config import TablesConfig

from ..proof import Proof
from ..shapes import small
from .losses import STORAGES, compare, config

COARSE = 50  # times as far from float32 as float32


def prove(proof: Proof) -> None:
    recipe, base = small()
    for name, tables in {"plain": TablesConfig(), "mult": STORAGES["mult"]}.items():
        for kind in ("adagrad", "rowwise_adagrad"):
            cfg = config(base, kind, replace(tables, data_type="fp16"))
            compare(proof, f"fp16 tables, {name}, {kind}", recipe, cfg, coarse=COARSE)
    compare(proof, "dense parts in bf16", recipe, config(base, "sgd"), coarse=COARSE, speed=("bf16",))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    compare(proof, "dense parts in TF32", recipe, config(base, "sgd"), coarse=COARSE)
    torch.set_float32_matmul_precision(before)
