"""Batches without one feature."""

from __future__ import annotations

import pytest
import torch

from dlrm_torchrec.datasets.ablation import without
from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.open import open_sequences
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec, interests_spec

SPEC = demo_spec()


def batch() -> Batch:
    stream = SyntheticStream(SPEC, split="train", num_rows=60, global_batch_size=50, rank=0, world_size=1, seed=3)
    return list(stream.batches())[1]  # 10 rows


@pytest.mark.parametrize("name", SPEC.feature_names)
def test_one_feature_is_the_same_in_all_rows_and_the_others_are_as_before(name: str) -> None:
    before, after = batch(), without(batch(), name, SPEC)
    assert torch.equal(after.labels, before.labels)
    assert (after.num_rows, after.global_rows) == (before.num_rows, before.global_rows)
    for i, feature in enumerate(SPEC.dense):
        found, was = after.dense_features[:, i], before.dense_features[:, i]
        assert torch.equal(found, torch.zeros_like(was) if feature.name == name else was)
    for key in before.sparse_features.keys():  # noqa: SIM118  # a KeyedJaggedTensor is no dictionary
        ids, ids_before = after.sparse_features[key], before.sparse_features[key]
        if key == name:
            assert ids.values().tolist() == [0] * len(before.labels)
            assert ids.lengths().tolist() == [1] * len(before.labels)
            assert ids.values().dtype == ids_before.values().dtype
        else:
            assert torch.equal(ids.values(), ids_before.values())
            assert torch.equal(ids.lengths(), ids_before.lengths())


@pytest.mark.parametrize("name", ["segment", "item", "category"])
def test_events_stay_as_many_without_a_feature(name: str) -> None:
    spec, ranks = interests_spec(), Ranks(16, 0, 1)
    streams = open_sequences("synthetic", spec, ranks, SamplesConfig(), users=60, epochs=1, seed=3)
    before = next(iter(streams["val"].batches()))
    after = without(before, name, spec)
    assert torch.equal(after.times, before.times)
    assert before.sparse_features[name].values().any()
    for feature in spec.sparse:
        found, was = after.sparse_features[feature.name], before.sparse_features[feature.name]
        assert torch.equal(found.lengths(), was.lengths())
        assert torch.equal(found.values(), was.values() * (feature.name != name))


def test_an_unknown_feature_is_refused() -> None:
    with pytest.raises(ValueError, match=r"feature must be one of the data set: got 'id_9'; name one of \['dense_0', "):
        without(batch(), "id_9", SPEC)
