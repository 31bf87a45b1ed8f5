"""Logistic regression against its formula, number by number."""

from __future__ import annotations

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.models.logistic_regression import DIM, LogisticRegression


def test_logits_are_a_sum_of_weights_over_ids_and_numbers() -> None:
    spec = demo_spec()
    torch.manual_seed(3)
    model = LogisticRegression(build_tables(spec.tables(DIM)).to_empty(device="cpu"), len(spec.dense))
    assert not model.over_arch.weight.any()  # without evidence, a number says nothing
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    weights = {name: value.detach().double() for name, value in model.named_parameters()}
    random, rows = np.random.default_rng(3), 20
    dense = random.normal(size=(rows, len(spec.dense)))
    lengths = [[1 + int(random.integers(3)) if each.multi_hot else 1 for _ in range(rows)] for each in spec.sparse]
    ids = [
        [random.integers(0, each.rows, count).tolist() for count in counts]
        for each, counts in zip(spec.sparse, lengths, strict=True)
    ]
    expected = weights["over_arch.bias"].item() + dense @ weights["over_arch.weight"][0].numpy()
    for feature, bags in zip(spec.sparse, ids, strict=True):
        table = weights[f"sparse_arch.embedding_bag_collection.embedding_bags.t_{feature.name}.weight"]
        expected += [sum(table[each].sum().item() / 10 for each in bag) for bag in bags]
    sparse = KeyedJaggedTensor(
        keys=[feature.name for feature in spec.sparse],
        values=torch.tensor([each for bags in ids for bag in bags for each in bag]),
        lengths=torch.tensor([count for counts in lengths for count in counts]),
    )
    found = model(torch.tensor(dense, dtype=torch.float32), sparse)
    assert found.shape == (rows, 1)
    np.testing.assert_allclose(found.detach().numpy()[:, 0], expected, rtol=1e-4, atol=1e-4)
