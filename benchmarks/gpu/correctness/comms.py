"""Quantised vectors and gradients, encoded and decoded on the device; one rank sends none."""

from __future__ import annotations

from dataclasses import replace

import torch
from torchrec.distributed.types import CommOp

from dlrm_torchrec.sharding.config import CommsConfig, Precision
from dlrm_torchrec.sharding.modules.comms import codecs

from ..proof import Proof
from ..shapes import small
from .losses import compare, config

# the largest error of a number, of the largest number: half of the last of 11 or 8 bits, or half a step of 255
ERRORS: dict[Precision, float] = {"fp16": 2**-11, "bf16": 2**-8, "int8": 1.01 / 255}
GRADIENTS = 1e-5  # their size


def prove(proof: Proof) -> None:
    for precision, most in ERRORS.items():
        registry = codecs(CommsConfig(forward=precision, backward=precision), [64])
        assert registry is not None
        both = registry[CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL.name]
        for what, codec, size in (("vectors", both.forward, 1.0), ("gradients", both.backward, GRADIENTS)):
            name = f"{what} in {precision}, decoded"
            with proof.guarded(name):
                numbers = size * (2 * torch.rand(1 << (10 if proof.toy else 26), device=proof.device) - 1)
                context = codec.create_context()
                decoded = codec.decode(codec.encode(numbers, context), context).float()
                error = float((decoded - numbers).abs().max()) / size
                proof.correct(name, error, at_most=most, unit="of the largest")
                milliseconds = proof.milliseconds(codec.encode, numbers, context, times=5)
                proof.measured(f"{what} into {precision}", numbers.nbytes / milliseconds / 1e6, unit="GB/s of float32")
    recipe, base = small()
    comms = CommsConfig(forward="fp16", backward="bf16")
    cfg = config(base, "sgd")
    cfg = replace(cfg, sharding=replace(cfg.sharding, comms=comms))
    compare(proof, "quantised comms, one rank", recipe, cfg)
