"""Batches without one feature."""

from __future__ import annotations

import pytest
import torch

from dlrm_torchrec.datasets.ablation import without
from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec

SPEC = demo_spec()
NAMES = [each.name for each in (*SPEC.dense, *SPEC.sparse)]


def batch():
    stream = SyntheticStream(SPEC, split="train", num_rows=60, global_batch_size=50, rank=0, world_size=1, seed=3)
    return list(stream.batches())[1]  # 10 rows


@pytest.mark.parametrize("name", NAMES)
def test_one_feature_is_the_same_in_all_rows_and_the_others_are_as_before(name: str) -> None:
    before, after = batch(), without(batch(), name, SPEC)
    assert torch.equal(after.labels, before.labels)
    assert (after.num_rows, after.global_rows) == (before.num_rows, before.global_rows)
    for i, feature in enumerate(SPEC.dense):
        found, was = after.dense_features[:, i], before.dense_features[:, i]
        assert torch.equal(found, torch.zeros_like(was) if feature.name == name else was)
    for feature in SPEC.sparse:
        found, was = after.sparse_features[feature.name], before.sparse_features[feature.name]
        if feature.name == name:
            assert found.values().tolist() == [0] * len(before.labels)
            assert found.lengths().tolist() == [1] * len(before.labels)
            assert found.values().dtype == was.values().dtype
        else:
            assert torch.equal(found.values(), was.values())
            assert torch.equal(found.lengths(), was.lengths())


def test_an_unknown_feature_is_refused() -> None:
    with pytest.raises(ValueError, match=r"feature must be one of the data set: got 'id_9'; name one of \['dense_0', "):
        without(batch(), "id_9", SPEC)
