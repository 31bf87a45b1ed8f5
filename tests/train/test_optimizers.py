"""What optimizers are told, by FBGEMM's names and by torch's."""

from __future__ import annotations

import inspect

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import arguments_of, optimize_tables_in_backward


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
