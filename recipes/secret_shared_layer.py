"""Evaluate the first MLP layer of a trained model on dense features that no single party sees.

    torchrun --standalone --nproc_per_node 2 recipes/secret_shared_layer.py train_dlrm runs/train_dlrm/demo
    torchrun --standalone --nproc_per_node 3 recipes/secret_shared_layer.py my_copy.py runs/my_copy/census --rows 4096

Every rank is a party. Rank 0 has the data: it converts them to 64-bit fixed point, splits them into random shares that
sum to them modulo 2^64, and sends one share to each party. Each party multiplies its share by the known weights, in
exact int64 arithmetic, and rank 0 adds up the results. The sum is the layer's output, although the other parties saw
only random numbers. Nonlinear steps need more than additive shares, so the layer ends before its ReLU.
Expected: the outputs of float64 within 3e-4, the precision of 16 fraction bits; a share's numbers are as large as 7e13.
"""

import json
from dataclasses import dataclass

from tyro.conf import Positional

from dlrm_torchrec.command_line import read_options
from dlrm_torchrec.recipe import load_ranking_recipe, read_config


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: Positional[str]  # The recipe that trained the run: its name here, or the path of your copy.
    run: Positional[str]  # The run's folder, with config.json and checkpoints.
    step: int | None = None  # Step of the checkpoint; None means the newest.
    rows: int = 2048  # Number of validation rows to use.
    fraction_bits: int = 16  # Bits after the binary point of inputs, weights and biases.
    debug: bool = False  # Show the call stack of every error.


if __name__ == "__main__":
    COMMAND_LINE = read_options(Config, __doc__)  # before torch is imported, so that --help answers at once

import torch
import torch.distributed as dist
from torch import nn

from dlrm_torchrec.datasets.open import load_spec
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.inference.integers.int64_matmul import int64_matmul
from dlrm_torchrec.inference.integers.secret_sharing import decode, encode, share
from dlrm_torchrec.terminal.failure import run
from dlrm_torchrec.train.checkpoints.checkpoint import load_unsharded
from dlrm_torchrec.train.checkpoints.folder import checkpoint_path
from dlrm_torchrec.train.world import join_world


def main(cfg: Config) -> dict[str, float]:
    recipe = load_ranking_recipe(cfg.recipe)
    trained = read_config(recipe, cfg.run)
    spec = load_spec(trained.data, trained.shape)
    task, tables = recipe.build(trained, spec, 1, torch.device("cpu"))
    tables.to_empty(device="cpu")
    load_unsharded(task, checkpoint_path(f"{cfg.run}/checkpoints", cfg.step))
    layers = (part for part in task.model.modules() if isinstance(part, nn.Linear))
    layer = next((part for part in layers if part.in_features == len(spec.dense)), None)
    if layer is None:
        raise ValueError(f"model must have a layer over its dense features: got {cfg.recipe!r} without; try train_dlrm")
    layer.requires_grad_(requires_grad=False)
    weight, bias = encode(layer.weight.T, cfg.fraction_bits), encode(layer.bias, 2 * cfg.fraction_bits)

    with join_world(trained.seed) as world:
        if world.size < 2:
            raise ValueError("parties must be at least 2: got 1 rank; start 2 with torchrun, as the docstring shows")
        size, shares = [0], None
        if world.is_main:  # alone reads the data
            ranks = Ranks(cfg.rows, 0, 1)
            streams = recipe.open_streams(
                trained.data, spec, ranks, rows=trained.rows, epochs=1, seed=trained.seed, lanes=1
            )
            dense = next(iter(streams["val"].batches())).dense_features[: cfg.rows]
            size, shares = [len(dense)], share(encode(dense, cfg.fraction_bits), world.size)
        dist.broadcast_object_list(size, src=0, group=world.control)
        mine = torch.empty(size[0], len(spec.dense), dtype=torch.int64)
        dist.scatter(mine, shares, src=0, group=world.control)
        outputs = int64_matmul(mine, weight)
        dist.reduce(outputs, dst=0, group=world.control)  # int64 sums wrap around, as they must
        if not world.is_main:
            return {}
        exact = nn.functional.linear(dense.double(), layer.weight.double(), layer.bias.double())
        error = (decode(outputs + bias, 2 * cfg.fraction_bits) - exact).abs()
        found = {
            "parties": world.size,
            "rows": len(exact),
            "largest_output": float(exact.abs().max()),
            "largest_error": float(error.max()),
            "mean_size_of_a_share": float(decode(mine, cfg.fraction_bits).abs().mean()),
        }
        print(json.dumps(found), flush=True)
        return found


if __name__ == "__main__":
    run(main, COMMAND_LINE)
