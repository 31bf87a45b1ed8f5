"""Ids are dealt to buckets evenly, and back."""

from __future__ import annotations

import torch

from dlrm_torchrec.embeddings.managed.buckets import EMPTY, bucket_of, dealt, num_buckets, undealt, whole_buckets
from dlrm_torchrec.schema import MANAGED_IDS
from tests.embeddings.managed import reference


def test_every_id_has_its_own_number_in_the_range_and_comes_back() -> None:
    ids = torch.cat([torch.arange(10_000), torch.randint(0, MANAGED_IDS, (10_000,)), torch.tensor([MANAGED_IDS - 1])])
    numbers = dealt(ids)
    assert int(numbers.min()) >= 0
    assert int(numbers.max()) < EMPTY
    assert torch.equal(undealt(numbers), ids)
    assert len(numbers.unique()) == len(ids.unique())
    assert int(dealt(torch.tensor([EMPTY]))) == EMPTY == MANAGED_IDS


def test_buckets_get_equal_shares_of_ids_in_order_and_of_multiples() -> None:
    for ids in (torch.arange(2**16), torch.arange(2**16) * 2**20):
        counts = torch.bincount(bucket_of(ids, 64), minlength=64).float()
        assert float(counts.std()) < 2 * 2**5  # of random ids: 2^5


def test_buckets_are_the_highest_bits() -> None:
    ids = torch.randint(0, MANAGED_IDS, (1_000,))
    for buckets in (1, 2, 1024):
        assert bucket_of(ids, buckets).tolist() == [reference.bucket_of(number, buckets) for number in ids.tolist()]


def test_a_table_has_whole_buckets_of_at_least_512_rows() -> None:
    for rows in (1, 255, 512, 513, 99_999, 5_000_001):
        buckets = num_buckets(rows)
        assert whole_buckets(rows) % buckets == 0
        assert rows <= whole_buckets(rows) < rows + buckets
        assert buckets == 1 or rows // buckets >= 512
        assert num_buckets(whole_buckets(rows)) == buckets
