"""What optimizers are told, by FBGEMM's names and by torch's."""

from __future__ import annotations

import inspect
from typing import Any, cast

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.train.checkpoints.state import materialise_state, run_tensors
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import arguments_of, build_optimizer, optimize_tables_in_backward


def test_betas_of_adam_reach_fbgemm_under_its_names() -> None:
    config = EmbeddingBagConfig(name="t", num_embeddings=4, embedding_dim=4, feature_names=["f"])
    tables = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
    adam = OptimizerConfig(kind="adam", lr=0.0045, betas=(0.25, 0.5))
    optimize_tables_in_backward(tables, adam)
    (told,) = next(tables.parameters())._optimizer_kwargs
    assert told == {"lr": 0.0045, "weight_decay": 0.0, "eps": 1e-8, "beta1": 0.25, "beta2": 0.5}
    known = inspect.signature(SplitTableBatchedEmbeddingBagsCodegen.__init__).parameters
    assert told.keys() - {"lr"} <= known.keys()  # TorchRec renames lr
    assert arguments_of(adam)["betas"] == (0.25, 0.5)
    assert "betas" not in arguments_of(OptimizerConfig(kind="adagrad", lr=0.1))


class Dense(nn.Linear):
    """A model without tables."""

    fused_optimizer = CombinedOptimizer([])


@pytest.mark.parametrize(
    ("kind", "on_gpu", "fused"), [("adam", True, True), ("adam", False, None), ("sgd", True, None)]
)
def test_adam_of_a_gpu_is_one_kernel(monkeypatch: pytest.MonkeyPatch, kind: Any, on_gpu: bool, fused: bool) -> None:
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: on_gpu))
    config = OptimizerConfig(kind=kind, lr=0.1)
    model = Dense(3, 2)
    optimizer = build_optimizer(cast(Any, model), config, config, clip_norm=0.1)
    assert optimizer.param_groups[0].get("fused") is fused
    materialise_state(optimizer)  # what a checkpoint is loaded into
    state = run_tensors(model, optimizer)["optimizer"]
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    if kind == "adam":
        assert {name.rpartition("/")[2] for name in state} == {"exp_avg", "exp_avg_sq", "step"}
