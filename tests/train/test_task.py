"""Where the parts of a model lie: dense parts on the device, with the weights that the CPU drew, and tables on meta."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.models.dlrm import DLRM_DCN

from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward
from dlrm_torchrec.train.task import BinaryRankingTask
from tests.device.double import META, Double, OnDevice


def test_dense_parts_are_moved_with_their_weights() -> None:
    spec = demo_spec()
    tables = build_tables(spec.tables(dim=16), TablesConfig(kind="mixed_dimension", threshold=100))
    model = DLRM_DCN(tables, len(spec.dense), [32, 16], [32, 1], 2, 8)
    model.register_buffer("mask", torch.ones(3), persistent=False)
    optimize_tables_in_backward(tables, OptimizerConfig(kind="adagrad", lr=0.1))
    before = {name: value.clone() for name, value in model.state_dict().items() if not value.is_meta}
    on_meta = {name: value for name, value in model.named_parameters() if value.is_meta}
    assert any("projections" in name for name in before)
    assert on_meta
    with Double():
        BinaryRankingTask(model, 1, device=META)
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name in on_meta:
                assert value is on_meta[name]  # with its mark
            else:
                assert isinstance(value, OnDevice)
        for name, drawn in before.items():
            moved = model.get_parameter(name)
            assert isinstance(moved, nn.Parameter)
            assert moved.requires_grad
            assert moved.detach().cpu().equal(drawn)
        assert model.state_dict().keys() == {*before, *on_meta}  # the buffer is still not kept
