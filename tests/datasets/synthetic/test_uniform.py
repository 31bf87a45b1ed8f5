"""Batches for measurements of time: shapes, and that all ids are equally likely."""

from __future__ import annotations

import pytest
import torch

from dlrm_torchrec.datasets.synthetic.uniform import uniform_batch
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

SPEC = DatasetSpec(
    name="x",
    label="y",
    dense=(DenseFeature(name="a"), DenseFeature(name="b")),
    sparse=(SparseFeature(name="one", rows=7), SparseFeature(name="many", rows=3, multi_hot=True, pooling_factor=4.6)),
)


def test_bags_have_the_length_and_the_ids_of_their_feature() -> None:
    size = 3_000
    batch = uniform_batch(SPEC, size)
    assert batch.dense_features.shape == (size, 2)
    assert (batch.num_rows, batch.global_rows, set(batch.labels.tolist())) == (size, size, {0.0, 1.0})
    for feature, length in zip(SPEC.sparse, (1, 5), strict=True):
        bags = batch.sparse_features[feature.name]
        assert set(bags.lengths().tolist()) == {length}
        counts = torch.bincount(bags.values())
        assert len(counts) == feature.rows
        expected = size * length / feature.rows
        assert counts.tolist() == pytest.approx([expected] * feature.rows, abs=6 * expected**0.5)
