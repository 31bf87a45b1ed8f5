"""Optimizers of tables (in backward) and of dense parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from dlrm_torchrec.sharding.modules.sharder import DenseAdam
from dlrm_torchrec.table_names import table_of
from dlrm_torchrec.train.config import OptimizerConfig, OptimizerKind

ADAMS = ("adam", "dense_adam")
REPLICATED = "replicated"  # the key of the optimizer of data-parallel tables
CLASSES: dict[OptimizerKind, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "adam": torch.optim.Adam,
    "dense_adam": DenseAdam,
}


def arguments_of(config: OptimizerConfig) -> dict[str, Any]:
    """Keyword arguments of the class of this optimizer."""
    arguments: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.kind in ADAMS:
        arguments["betas"] = config.betas
    return arguments if config.kind == "sgd" else {**arguments, "eps": config.eps}


def optimize_tables_in_backward(tables: nn.Module, config: OptimizerConfig) -> None:
    """Mark the embedding tables in ``tables``, so that FBGEMM updates the rows of a batch inside backward.

    Call it on the meta model before planning, because the planner uses this mark to count optimizer state.
    """
    weights = [weight for name, weight in tables.named_parameters() if table_of(name)]
    arguments = arguments_of(config)
    apply_in_backward(CLASSES[config.kind], weights, arguments)
    if "betas" in arguments:  # the mark keeps this dictionary object, and FBGEMM has other names than torch.optim
        arguments["beta1"], arguments["beta2"] = arguments.pop("betas")
    if config.kind == "dense_adam":
        arguments["optimizer"] = EmbOptimType.ADAM  # which TorchRec cannot tell from the class; no table uses it


def build_optimizer(
    model: DistributedModelParallel, tables: OptimizerConfig, dense: OptimizerConfig, *, clip_norm: float = 0.0
) -> CombinedOptimizer:
    """One optimizer over the fused tables, the data-parallel tables and the dense parameters.

    A data-parallel table is not fused. This optimizer updates it, with the config of the tables and not the dense one.
    ``clip_norm`` > 0 clips the norm of the dense gradients, which are equal on all ranks after DDP's average.
    """
    replicated: dict[str, nn.Parameter] = {}
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in in_backward_optimizer_filter(model.named_parameters()):
        (replicated if table_of(name) else parameters)[name] = parameter
    optimizers: list[KeyedOptimizer | tuple[str, KeyedOptimizer]] = [model.fused_optimizer]
    if replicated:
        optimizers.append((REPLICATED, _keyed(replicated, tables)))
    dense_optimizer = _keyed(parameters, dense)
    if clip_norm > 0:
        dense_optimizer = GradientClippingOptimizer(dense_optimizer, GradientClipping.NORM, max_gradient=clip_norm)
    optimizers.append(("dense", dense_optimizer))
    return CombinedOptimizer(optimizers)


def _keyed(parameters: dict[str, nn.Parameter], config: OptimizerConfig) -> KeyedOptimizer:
    arguments = arguments_of(config)
    if config.kind in ADAMS and any(parameter.is_cuda for parameter in parameters.values()):
        arguments["fused"] = True  # one kernel for all parameters; by default, torch launches one for each operation

    def build(values: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return CLASSES[config.kind](values, **arguments)

    return KeyedOptimizerWrapper(parameters, build)
