"""Leave-one-out metrics against torchmetrics and a plain loop, with ties, and over unequal ranks."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.retrieval import RetrievalHitRate, RetrievalNormalizedDCG
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.train.metrics.leave_one_out import evaluate_leave_one_out, held_out, leave_one_out_metrics
from dlrm_torchrec.train.world import World
from tests.distributed import here, run_ranks

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def draw(seed: int, users: int = 40, negatives: int = 30, decimals: int | None = None) -> Rows:
    """Users, scores and labels of shuffled rows; ``decimals`` makes ties."""
    random = np.random.default_rng(seed)
    ids = np.repeat(random.permutation(100)[:users], 1 + negatives)
    labels = np.tile([1.0] + [0.0] * negatives, users)
    scores = random.normal(size=len(ids)) + 0.7 * labels
    order = random.permutation(len(ids))
    scores = scores if decimals is None else scores.round(decimals)
    users_of, scores_of, labels_of = (torch.from_numpy(column[order]) for column in (ids, scores, labels))
    return users_of.long(), scores_of.float(), labels_of.float()


def metrics(rows: Rows, k: int = 10) -> dict[str, float]:
    return leave_one_out_metrics(held_out(*rows), k)


@pytest.mark.parametrize(("seed", "k"), [(0, 10), (1, 3), (2, 1), (3, 50)])
def test_metrics_equal_those_of_torchmetrics(seed: int, k: int) -> None:
    users, scores, labels = rows = draw(seed)
    found = metrics(rows, k)
    for name, metric in ((f"hr@{k}", RetrievalHitRate(top_k=k)), (f"ndcg@{k}", RetrievalNormalizedDCG(top_k=k))):
        theirs = float(metric(scores, labels, indexes=users))  # a mean over 40 users in float32
        assert found[name] == pytest.approx(theirs, rel=1e-5), name
    aucs = [binary_auroc(scores[users == user], labels[users == user].long()) for user in users.unique()]
    assert found["auc"] == pytest.approx(float(torch.stack(aucs).mean()), rel=1e-5)
    assert (found["positives"], found["samples"]) == (40, 40 * 31)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_of_ties_every_order_counts_alike(k: int) -> None:
    users, scores, labels = rows = draw(5, decimals=0)
    found = metrics(rows, k)
    hits, gains = [], []
    for user in users.unique():
        of_user = users == user
        target = scores[of_user & (labels == 1)]
        negatives = scores[of_user & (labels == 0)]
        places = range(int((negatives > target).sum()), int((negatives >= target).sum()) + 1)  # from 0
        hits.append(np.mean([place < k for place in places]))
        gains.append(np.mean([1 / math.log2(place + 2) if place < k else 0 for place in places]))
    assert found[f"hr@{k}"] == pytest.approx(np.mean(hits), rel=1e-12)
    assert found[f"ndcg@{k}"] == pytest.approx(np.mean(gains), rel=1e-12)


def test_a_constant_score_ranks_no_better_than_a_random_one() -> None:
    users, scores, labels = draw(0, negatives=99)
    found = metrics((users, torch.full_like(scores, 3.0), labels))
    assert found["hr@10"] == pytest.approx(10 / 100)
    assert found["auc"] == 0.5


def scored(rows: Rows) -> Batch:
    """A batch whose dense column is its logits, for ``Echo``; the last row is padding."""
    users, scores, labels = rows
    padding = torch.full((1,), 99.0)
    return Batch(
        dense_features=torch.cat([scores, padding])[:, None],
        sparse_features=KeyedJaggedTensor(["user"], users, lengths=torch.tensor([1] * len(users) + [0])),
        labels=torch.cat([labels, padding]),
        num_rows=len(users),
        global_rows=len(users),
    )


class Echo(nn.Module):
    def forward(self, batch: Batch) -> Any:
        return torch.zeros(()), (torch.zeros(()), batch.dense_features[:, 0], batch.num_rows)


def _outcomes(cases: list[tuple[Rows, float, bool]]) -> list[dict[str, float] | str]:
    """The metrics, or the error, of each (rows, share of them on rank 0, learned): two batches on each of two ranks."""
    world = here()
    found: list[dict[str, float] | str] = []
    for rows, share, learned in cases:
        cut = int(share * len(rows[0]))
        users, scores, labels = (column[cut:] if world.rank else column[:cut] for column in rows)
        middle = len(users) // 2
        halves = slice(middle), slice(middle, None)
        batches = [scored((users[half], scores[half], labels[half])) for half in halves]
        model = Echo()
        try:
            found.append(evaluate_leave_one_out(model, batches, world, user="user", learned=learned, k=5))
            assert model.training
        except ValueError as error:
            found.append(str(error))
    return found


def broken(**changes: Any) -> Rows:
    """Two users with three rows each, in order, changed in one column."""
    columns = {"users": [3, 3, 3, 5, 5, 5], "scores": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "labels": [1, 0, 0, 1, 0, 0]}
    users, scores, labels = {**columns, **changes}.values()
    return torch.tensor(users), torch.tensor(scores), torch.tensor(labels, dtype=torch.float32)


HOW = "prepare with --task implicit --split leave_one_out"
REFUSED = [
    (broken(labels=[1, 1, 0, 1, 0, 0]), f"one negative: got 1 other users of 2; {HOW}"),
    (broken(labels=[0, 0, 0, 1, 0, 0]), "got 1 other users of 2"),
    (broken(labels=[1, 0, 0, 1, 1, 1]), "got 1 other users of 2"),
    (broken(users=[3, 3, 3, 3, 3, 5]), "got 2 other users of 2"),
    (broken(users=[3, 4, 4, 5, 5, 5]), "got 2 other users of 3"),
    ((torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0)), "got 0 other users of 0"),
    (broken(scores=[0.1, math.nan, 0.3, 0.4, math.inf, 1.0]), "logits must be finite: got NaN or infinity in 2 rows;"),
]


@pytest.mark.parametrize(("rows", "message"), REFUSED)
def test_rows_that_are_refused(rows: Rows, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        held_out(*rows)


def test_a_user_in_every_row_is_needed() -> None:
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"), control=None)  # type: ignore[arg-type]  # alone
    batch = scored(broken())
    batch.num_rows = 5
    with pytest.raises(ValueError, match=r"feature 'user' must have one id per row, .*: got 6 in 5 rows;"):
        evaluate_leave_one_out(Echo(), [batch], world, user="user", learned=False)


def test_over_two_ranks() -> None:
    """Users may be cut by batches and ranks, one rank may be empty, and an error is raised on both."""
    rows = draw(7, decimals=1)
    random = np.random.default_rng(0)
    users, labels = torch.arange(2000).repeat_interleave(4), torch.tensor([1.0, 0, 0, 0]).repeat(2000)
    noise = users, torch.from_numpy(random.normal(size=8000)).float(), labels
    constant = users, torch.zeros(8000), labels
    cases = [
        (rows, 0.37, False),
        (rows, 0.0, False),
        (broken(scores=[0.1, 0.2, 0.3, 0.4, 0.5, math.nan]), 0.5, False),  # rank 0 does not see it
        (noise, 0.5, False),
        (noise, 0.5, True),
        (constant, 0.5, True),
    ]
    (*results, not_finite, random_auc, random_error, constant_error), others = run_ranks(2, _outcomes, cases)
    assert others == [*results, not_finite, random_auc, random_error, constant_error]
    assert results == [metrics(rows, 5)] * 2
    assert not_finite == "logits must be finite: got NaN or infinity in 1 rows; look at the learning rate"
    assert isinstance(random_auc, dict)
    assert random_auc["auc"] == pytest.approx(0.5, abs=0.02)
    assert str(random_error).startswith("validation AUC must differ from 0.5 after the warm-up: got 0.")
    assert str(constant_error).startswith("logits must differ between rows: got 0 for all")
