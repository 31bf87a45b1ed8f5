"""Assigned partitions: the paper's example, random clusterings, one copy per device, and what is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.listed import ListedCodes

# {{0},{1,3,4},{2}}, {{0,1,3},{2,4}}, {{0,3},{1,2,4}}: arXiv 1909.02107, section 3
PAPER = ([0, 1, 2, 1, 1], [0, 0, 1, 0, 1], [0, 1, 1, 0, 1])


def tensors(*assignments: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(assignment) for assignment in assignments]


def test_the_example_of_the_paper() -> None:
    partition = Assigned(tensors(*PAPER))
    assert partition.num_ids == 5
    assert partition.classes == (3, 2, 2)
    assert [classes.tolist() for classes in partition.of(torch.arange(5))] == list(PAPER)
    assert partition.ids_of(*partition.of(torch.arange(5))).tolist() == [0, 1, 2, 3, 4]


def test_classes_have_the_shape_of_the_ids() -> None:
    partition = Assigned(tensors(*PAPER))
    for dtype in (torch.int32, torch.int64):
        ids = torch.tensor([[4, 0, 0], [2, 3, 1]], dtype=dtype)
        assert [classes.tolist() for classes in partition.of(ids)] == [
            [[assigned[x] for x in row] for row in ids.tolist()] for assigned in PAPER
        ]
        assert torch.equal(partition.ids_of(*partition.of(ids)), ids.long())
    assert partition.of(torch.tensor(2))[0].shape == ()


def test_classes_that_no_id_has() -> None:
    partition = Assigned(tensors([0, 0, 1], [0, 1, 0]))
    assert partition.ids_of(torch.tensor([1, 1, 9]), torch.tensor([1, 0, 0])).tolist() == [-1, 2, -1]


@given(rows=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=20))
def test_complementary_exactly_when_no_two_tuples_agree(rows: list[tuple[int, ...]]) -> None:
    assignments = [torch.tensor(column, dtype=torch.uint8) for column in zip(*rows, strict=True)]
    if len(set(rows)) == len(rows):
        partition = Assigned(assignments)
        assert partition.ids_of(*partition.of(torch.arange(len(rows)))).tolist() == list(range(len(rows)))
        return
    with pytest.raises(ValueError, match="assignments must tell any two ids apart") as error:
        Assigned(assignments)
    one, other = (int(word.strip(";")) for word in str(error.value).split() if word.strip(";").isdigit())
    assert one != other
    assert rows[one] == rows[other]


def test_class_numbers_whose_product_exceeds_int64() -> None:
    rows = [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0), (0, 2**31 - 1, 2**31 - 1)]  # 4 * 2**62 is 0 in int64
    partition = Assigned([torch.tensor(column) for column in zip(*rows, strict=True)])
    assert partition.classes == (5, 2**31, 2**31)
    assert partition.ids_of(*partition.of(torch.arange(6))).tolist() == [0, 1, 2, 3, 4, 5]


def test_codes_take_few_bytes() -> None:
    for most, num_bytes in ((2**15 - 1, 2), (2**15, 4)):
        partition = Assigned([torch.tensor([0, 1, most]), torch.tensor([2, 1, 0])])
        assert partition.listed_bytes == 3 * num_bytes + 3 * 2
        assert [classes.tolist() for classes in partition.of(torch.arange(3))] == [[0, 1, most], [2, 1, 0]]
        assert all(classes.dtype == torch.int64 for classes in partition.of(torch.arange(3)))


def test_ids_may_share_their_vectors() -> None:
    partition = Assigned(tensors([0, 1, 0, 1, 2], [3, 0, 3, 1, 0]), complementary=False)
    assert partition.shared_ids == 2 / 5
    assert Assigned(tensors(*PAPER)).shared_ids == 0
    assert partition.ids_of(*partition.of(torch.arange(5))).tolist() == [2, 1, 2, 3, 4]
    with pytest.raises(
        ValueError, match=r"got the same classes for ids 0 and 2; .* or let ids share their vectors with"
    ):
        Assigned(tensors([0, 1, 0, 1, 2], [3, 0, 3, 1, 0]))


def test_kernels_share_the_codes_of_a_partition_and_join_those_of_several() -> None:
    one, other = Assigned(tensors(*PAPER)), Assigned(tensors([0, 1, 2, 2**15], [3, 1, 2, 0]))
    codes = ListedCodes(one.codes)
    assert codes.short.ctypes.data == one.codes[0].data_ptr()
    assert [codes.begin(each) for each in (*one.codes, None)] == [0, 5, 10, -1]
    codes = ListedCodes([*one.codes, None, *other.codes])
    assert codes.short.tolist() == [*PAPER[0], *PAPER[1], *PAPER[2], 3, 1, 2, 0]
    assert codes.long.tolist() == [0, 1, 2, 2**15]
    assert [codes.begin(each) for each in other.codes] == [19, 15]


@given(clusters=st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_any_clustering_is_made_complementary(clusters: list[int]) -> None:
    partition = Assigned.from_clusters(torch.tensor(clusters))
    seen: Counter[int] = Counter()
    expected = []
    for cluster in clusters:
        expected.append((cluster, seen[cluster]))
        seen[cluster] += 1
    ids = torch.arange(len(clusters))
    assert list(zip(*(classes.tolist() for classes in partition.of(ids)), strict=True)) == expected
    assert partition.classes == (max(clusters) + 1, max(seen.values()))
    assert torch.equal(partition.ids_of(*partition.of(ids)), ids)


class CopiesBetweenDevices(TorchDispatchMode):
    """Counts copies from one device to another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func is torch.ops.aten._to_copy.default and "device" in (kwargs or {})
        return func(*args, **(kwargs or {}))


def test_copied_to_the_device_of_the_ids_once() -> None:
    partition = Assigned(tensors(*PAPER))
    ids = torch.arange(3, device="meta")
    with CopiesBetweenDevices() as copies:
        assert all(classes.device == ids.device and classes.shape == ids.shape for classes in partition.of(ids))
        assert copies.count == 3
        partition.of(ids)
        partition.of(torch.arange(3))
        assert copies.count == 3


def test_later_changes_outside_do_not_reach_in() -> None:
    assignment = torch.arange(3)
    partition = Assigned([assignment])
    assignment.zero_()
    assert partition.of(torch.arange(3))[0].tolist() == [0, 1, 2]


def test_two_ids_alike_are_named() -> None:
    with pytest.raises(
        ValueError,
        match="assignments must tell any two ids apart: got the same classes for ids 1 and 3; add a partition that",
    ):
        Assigned(tensors(*PAPER[:2]))


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ([], "assignments must hold at least one tensor: got none; give the class of every id"),
        (
            tensors([0, 1], [0]),
            r"assignments must all have the same length, the number of ids: got lengths \[2, 1\]; give",
        ),
        (
            tensors([0, 2**31]),
            "assignment 0 must have classes below 2\\^31: got 2147483648; number classes from 0 with",
        ),
        (tensors([0, 1], [0, -2]), "assignment 1 must have no negative class: got -2; number classes from 0"),
        ([torch.zeros(2)], r"assignment 0 must be a 1-D integer tensor .* got torch.float32 of shape \(2,\); give"),
        ([torch.zeros(2, dtype=torch.bool)], "assignment 0 must be a 1-D integer tensor .* got torch.bool"),
        ([torch.zeros(2, 1).long()], r"assignment 0 must be a 1-D integer tensor .* of shape \(2, 1\)"),
        ([torch.zeros(0).long()], r"assignment 0 must be a 1-D integer tensor .* of shape \(0,\)"),
    ],
)
def test_errors(assignments: list[torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Assigned(assignments)


def test_clusters_are_checked_too() -> None:
    with pytest.raises(ValueError, match="clusters must have no negative class: got -1; number classes from 0"):
        Assigned.from_clusters(torch.tensor([0, -1]))
