"""Updates over sorted ids: against float64, over ranks and sharding types, and from FBGEMM's checkpoints and back."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from dlrm_torchrec.embeddings.compositional.thread_pool import thread_pool
from dlrm_torchrec.sharding.modules import sorted_updates
from dlrm_torchrec.sharding.modules.sorted_updates import become_adam, can_sort, use_sorted_updates
from tests.distributed import run_ranks

SPECS = [(50, 8), (3, 16), (70_000, 4)]  # rows and dim
FEATURES = [0, 0, 1, 2]  # the table of each feature
BATCH, EPS, BETAS = 33, 1e-3, (0.8, 0.95)
OPTIMIZERS = [EmbOptimType.EXACT_SGD, EmbOptimType.EXACT_ADAGRAD, EmbOptimType.EXACT_ROWWISE_ADAGRAD, EmbOptimType.ADAM]


def build(optimizer: EmbOptimType, decay: float = 0.0, **options: object) -> SplitTableBatchedEmbeddingBagsCodegen:
    adam = optimizer is EmbOptimType.ADAM
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows, dim in SPECS],
        feature_table_map=FEATURES,
        optimizer=EmbOptimType.EXACT_ADAGRAD if adam else optimizer,
        eps=EPS,
        beta1=BETAS[0],
        beta2=BETAS[1],
        weight_decay=decay,
        **options,
    )
    if adam:
        become_adam(tables)
    torch.manual_seed(0)
    for weight in tables.split_embedding_weights():
        weight.copy_(torch.randn_like(weight))
    return tables


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids of bags of 0 to 4, many of them repeated, their offsets and weights, and a gradient."""
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(0, 5, (len(FEATURES) * BATCH,), generator=generator)
    rows = torch.tensor([SPECS[table][0] for table in FEATURES]).repeat_interleave(BATCH).repeat_interleave(lengths)
    ids = (torch.rand(len(rows), generator=generator) ** 2 * rows).long()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    gradient = torch.randn(BATCH, sum(SPECS[table][1] for table in FEATURES), generator=generator)
    return ids, offsets, torch.rand(len(rows), generator=generator), gradient


class Reference:
    """The same tables in float64, with bags and optimizers spelt out."""

    def __init__(self, tables: SplitTableBatchedEmbeddingBagsCodegen, decay: float) -> None:
        self.kind, self.decay, self.step = tables.optimizer, decay, 0
        self.weights = [weight.double() for weight in tables.split_embedding_weights()]
        self.sums = [torch.zeros_like(weight) for weight in self.weights]
        self.squares = [torch.zeros_like(weight) for weight in self.weights]

    def pooled(self, ids: torch.Tensor, offsets: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        columns = []
        for feature, table in enumerate(FEATURES):
            bags = offsets[feature * BATCH : (feature + 1) * BATCH + 1].tolist()
            pairs = list(pairwise(bags))
            weight = self.weights[table]
            columns.append(torch.stack([(factors[a:b, None].double() * weight[ids[a:b]]).sum(0) for a, b in pairs]))
        return torch.cat(columns, dim=1)

    def update(
        self, pooled: torch.Tensor, gradient: torch.Tensor, ids: torch.Tensor, offsets: torch.Tensor, lr: float
    ) -> None:
        self.step += 1
        gradients = torch.autograd.grad(pooled, self.weights, gradient.double())
        for table, (weight, g) in enumerate(zip(self.weights, gradients, strict=True)):
            first, last = FEATURES.index(table), len(FEATURES) - FEATURES[::-1].index(table)
            rows = ids[offsets[first * BATCH] : offsets[last * BATCH]].unique()
            weight.requires_grad_(False)
            self._step(table, rows, g[rows] + self.decay * weight[rows], lr)

    def _step(self, table: int, rows: torch.Tensor, g: torch.Tensor, lr: float) -> None:
        sums, squares = self.sums[table], self.squares[table]
        if self.kind is EmbOptimType.EXACT_SGD:
            change = g
        elif self.kind is EmbOptimType.ADAM:
            sums[rows] = BETAS[0] * sums[rows] + (1 - BETAS[0]) * g
            squares[rows] = BETAS[1] * squares[rows] + (1 - BETAS[1]) * g**2
            mean, square = sums[rows] / (1 - BETAS[0] ** self.step), squares[rows] / (1 - BETAS[1] ** self.step)
            change = mean / (square.sqrt() + EPS)
        else:
            row_wise = self.kind is EmbOptimType.EXACT_ROWWISE_ADAGRAD
            sums[rows] += (g**2).mean(1, keepdim=True) if row_wise else g**2
            change = g / (sums[rows].sqrt() + EPS)
        self.weights[table][rows] -= lr * change


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pooling", [PoolingMode.SUM, PoolingMode.MEAN])
@pytest.mark.parametrize(("weighted", "decay"), [(False, 0.0), (True, 0.1)])
def test_equals_float64(optimizer: EmbOptimType, pooling: PoolingMode, weighted: bool, decay: float) -> None:
    tables = build(optimizer, decay, pooling_mode=pooling)
    use_sorted_updates(tables)
    reference = Reference(tables, decay)
    for step in range(4):
        lr = 0.1 / (1 + step)
        tables.set_learning_rate(lr)
        ids, offsets, weights, gradient = batch(step)
        factors = weights if weighted else torch.ones(len(ids))
        if pooling is PoolingMode.MEAN:
            lengths = offsets.diff()
            factors = factors / lengths.repeat_interleave(lengths)
        for weight in reference.weights:
            weight.requires_grad_(True)
        expected = reference.pooled(ids, offsets, factors)
        pooled = tables(ids, offsets, weights if weighted else None)
        torch.testing.assert_close(pooled.detach().double(), expected.detach(), rtol=1e-5, atol=1e-5)
        pooled.backward(gradient)
        reference.update(expected, gradient, ids, offsets, lr=lr)
    for found, wanted in zip(tables.split_embedding_weights(), reference.weights, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    assert all((weight != 0).all() for weight in tables.split_embedding_weights())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_threads_change_no_bit(optimizer: EmbOptimType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_updates, "THREAD", 1)
    found = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            tables = build(optimizer)
            use_sorted_updates(tables)
            for step in range(2):
                ids, offsets, weights, gradient = batch(step)
                tables(ids, offsets, weights).backward(gradient)
            states = [] if optimizer is EmbOptimType.EXACT_SGD else tables.split_optimizer_states()
            found.append([*tables.split_embedding_weights(), *(moment for state in states for moment in state)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_what_is_not_sorted_is_left_to_fbgemm() -> None:
    half = build(EmbOptimType.EXACT_SGD, weights_precision=SparseType.FP16)
    sequence = SplitTableBatchedEmbeddingBagsCodegen(
        [(9, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)], pooling_mode=PoolingMode.NONE
    )
    assert not can_sort(half)
    assert not can_sort(sequence)
    ids, offsets, weights, gradient = batch(0)
    grads: list[torch.Tensor] = []
    for tables in (build(EmbOptimType.EXACT_SGD), build(EmbOptimType.EXACT_SGD)):
        if grads:
            use_sorted_updates(tables)
        trained = weights.clone().requires_grad_()
        tables(ids, offsets, trained).backward(gradient)
        assert trained.grad is not None
        grads.append(trained.grad)
    assert torch.equal(*grads)
    adam = build(EmbOptimType.ADAM)
    use_sorted_updates(adam)
    with pytest.raises(
        ValueError, match=r"tables with Adam on cpu must have one batch size .*: got weights with a grad"
    ):
        adam(ids, offsets, weights.requires_grad_())


def test_an_empty_batch_changes_nothing() -> None:
    tables = build(EmbOptimType.EXACT_ROWWISE_ADAGRAD)
    use_sorted_updates(tables)
    before = [weight.clone() for weight in tables.split_embedding_weights()]
    for bags in (0, 5):
        offsets = torch.zeros(len(FEATURES) * bags + 1, dtype=torch.int64)
        pooled = tables(torch.empty(0, dtype=torch.int64), offsets)
        assert pooled.shape == (bags, 36)
        assert not pooled.any()
        pooled.backward(torch.ones_like(pooled))
    assert all(torch.equal(a, b) for a, b in zip(before, tables.split_embedding_weights(), strict=True))


def threads_of_a_pool() -> tuple[list[int], int]:
    torch.set_num_threads(3)
    pool = thread_pool(3)
    return [pool.submit(torch.get_num_threads).result() for _ in range(4)], torch.get_num_threads()


def test_threads_of_a_pool_have_one_core() -> None:
    """Or an update in such a thread would hand parts of itself to a pool that waits for it."""
    assert run_ranks(1, threads_of_a_pool) == [([1, 1, 1, 1], 3)]
