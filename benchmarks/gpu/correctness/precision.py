"""Tables in fp16, and dense parts in bf16 and TF32, against the losses of float32 on the CPU."""

from __future__ import annotations

from dataclasses import replace

import torch

from dlrm_torchrec.embeddings.config import TablesConfig

from ..proof import Proof
from ..shapes import small
from .losses import STORAGES, compare, config

COARSE = 1e-2  # relative difference of a loss


def prove(proof: Proof) -> None:
    recipe, base = small()
    for name, tables in {"plain": TablesConfig(), "mult": STORAGES["mult"]}.items():
        half = replace(tables, data_type="fp16")
        compare(proof, f"losses: fp16 tables, {name}", recipe, config(base, "sgd", half), at_most=COARSE)
        cfg = config(base, "rowwise_adagrad", half)
        compare(proof, f"losses: fp16 tables, {name}, row-wise", recipe, cfg, at_most=COARSE)
    compare(proof, "losses: dense parts in bf16", recipe, config(base, "sgd"), at_most=COARSE, speed=("bf16",))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    compare(proof, "losses: dense parts in TF32", recipe, config(base, "sgd"), at_most=COARSE)
    torch.set_float32_matmul_precision(before)
