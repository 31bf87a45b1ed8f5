"""Multiply-adds against those that torch counts and those that MLPerf's reference states; bytes against autograd's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchrec.distributed.planner import Topology
from torchrec.sparse.jagged_tensor import JaggedTensor

from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.log import history_of
from dlrm_torchrec.datasets.sequences.order import SampleOrder, weights_of
from dlrm_torchrec.datasets.sequences.samples import Window, find_samples
from dlrm_torchrec.datasets.sequences.synthetic import Interests
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.specs import interests_spec
from dlrm_torchrec.embeddings.tables import build_sequence_tables
from dlrm_torchrec.models.hstu.attention.layout import BLOCKS
from dlrm_torchrec.models.hstu.candidates import CandidateRanker
from dlrm_torchrec.models.hstu.config import MLPERF, HSTUConfig, Variant
from dlrm_torchrec.models.hstu.costs import (
    Work,
    activation_bytes,
    multiply_adds,
    pooled_activation_bytes,
    pooled_multiply_adds,
)
from dlrm_torchrec.models.hstu.model import SequenceRanker
from dlrm_torchrec.models.hstu.pooled import PooledRanker
from dlrm_torchrec.models.hstu.ranker import HSTURanker
from dlrm_torchrec.models.hstu.tokens import Samples
from dlrm_torchrec.models.summary import describe_model
from dlrm_torchrec.schema import DatasetSpec, SparseFeature
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.estimate.planner_stats import EstimateStats
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward

CONFIG = HSTUConfig(dim=32, heads=2, key_dim=12, value_dim=20, hidden=24, most_tokens=512, layers=3)
TABLE_DIM = 16
INTERESTS = history_of(interests_spec())


def work_of(samples: int, tokens: float, candidates: int, features: int, context: int) -> Work:
    return Work.of_equal_samples(
        samples, tokens, candidates=candidates, features=features, context=context, table_dim=TABLE_DIM
    )


def forward(config: HSTUConfig, work: Work, kind: type[CandidateRanker] = HSTURanker) -> torch.Tensor:
    """The logits of random samples of that work."""
    count, tokens, each = int(work.samples), int(work.tokens / work.samples), int(work.candidates / work.samples)
    events, context = ([f"{kind}{i}" for i in range(n)] for kind, n in (("e", work.features), ("c", work.context)))
    ranker = kind(config, events, context, table_dim=TABLE_DIM, num_actions=2)
    lengths = torch.full((count,), tokens)
    rows = {
        name: JaggedTensor(torch.randn(int(n.sum()), TABLE_DIM, requires_grad=True), lengths=n)
        for names, n in ((events, lengths), (context, torch.ones_like(lengths)))
        for name in names
    }
    times, actions = torch.randint(10**6, (2, count * tokens))
    samples = Samples(times, actions % 3, lengths, torch.full_like(lengths, each))
    logits: torch.Tensor = ranker(rows, samples)
    return logits


def kept_bytes(config: HSTUConfig, work: Work, kind: type[CandidateRanker] = HSTURanker) -> int:
    """Bytes of all storages that autograd keeps, except parameters and rows of tables."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_leaf or not tensor.requires_grad:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward(config, work, kind).sum()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("variant", ["paper", "mlperf"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_what_autograd_keeps_is_predicted_and_linear_in_tokens(variant: Variant, dropout: float) -> None:
    config = replace(CONFIG, variant=variant, dropout=dropout, input_dropout=dropout)
    for features, context in ((1, 0), (3, 2)):
        small, large = (work_of(samples, 100, 1, features, context) for samples in (20, 60))
        found = [kept_bytes(config, work) for work in (small, large)]
        assert 2.9 < found[1] / found[0] < 3.05
        layer = activation_bytes(replace(config, layers=4), large) - activation_bytes(config, large)
        gradients = large.tokens * features * TABLE_DIM * 4 + large.samples * context * TABLE_DIM * 4
        predicted = activation_bytes(config, large) - layer - gradients
        assert found[1] == pytest.approx(predicted, rel=0.1)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_what_autograd_keeps_of_pairs_is_predicted(dropout: float) -> None:
    config = replace(CONFIG, input_dropout=dropout)
    for features, context, candidates in ((1, 0, 1), (3, 2, 1), (3, 2, 6)):
        work = work_of(20, 100, candidates, features, context)
        pairs = 20 * candidates * (100 - candidates) * 4 * (6 * config.dim + 3 * config.hidden)
        gradients = (work.tokens * features + work.samples * context) * TABLE_DIM * 4
        predicted = pooled_activation_bytes(config, work) - pairs - gradients
        assert kept_bytes(config, work, PooledRanker) == pytest.approx(predicted, rel=0.1)


def test_long_histories_need_no_more_bytes_per_token() -> None:
    few, many = work_of(4, 500, 1, 2, 0), work_of(40, 50, 1, 2, 0)
    assert kept_bytes(CONFIG, few) == pytest.approx(kept_bytes(CONFIG, many), rel=0.05)


@pytest.mark.parametrize("batch_by", ["tokens", "rows"])
def test_no_rank_has_more_tokens_than_a_plan_counts(batch_by: Literal["tokens", "rows"]) -> None:
    log = Interests(interests_spec(), users=300, seed=1).log()
    config = SamplesConfig(history=50, candidates=4, batch_by=batch_by)
    samples = find_samples(log, INTERESTS, config, split="train", window=Window(0, 1 << 60))
    tokens = samples.tokens()
    sparse = tuple(replace(each, pooling_factor=float(tokens.mean())) for each in interests_spec().sparse)
    ranker = PooledRanker(CONFIG, INTERESTS.events, ["segment"], table_dim=TABLE_DIM, num_actions=2)
    ranker.expect(**config.sizes(replace(interests_spec(), sparse=sparse)))
    for ranks, share in ((1, 64), (4, 32)):
        orders = [
            SampleOrder(
                tokens=tokens, weights=weights_of(tokens, batch_by=batch_by), times=log.times[samples.moments],
                ranks=Ranks(share * ranks, rank, ranks), epochs=1, seed=3, shuffle=True,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        most = max(int(tokens[mine].sum()) for order in orders for _, mine in order.steps(0))
        counted = ranker.most_work(share).tokens
        assert most <= counted
        if batch_by == "rows":
            assert counted == share * 54  # all may be the longest
        else:
            assert counted == pytest.approx(share * tokens.mean() + 108)
            assert counted < min(1.5 * most, 0.9 * share * 54)


def test_chunks_bound_what_is_kept() -> None:
    chunked, work = replace(CONFIG, chunk_tokens=1000), work_of(10_000, 100, 1, 2, 0)
    rows = work.tokens * 2 * TABLE_DIM * 4
    whole = activation_bytes(CONFIG, work) - rows
    assert activation_bytes(chunked, work) - rows == pytest.approx(whole * 1512 / work.tokens, rel=1e-4)
    assert kept_bytes(chunked, work_of(40, 100, 1, 2, 0)) < 0.05 * kept_bytes(CONFIG, work_of(40, 100, 1, 2, 0))


@pytest.mark.parametrize("variant", ["paper", "mlperf"])
def test_multiply_adds_are_those_of_the_forward_pass(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCKS, "cpu", 1)  # no tile has hidden pairs
    config, work = replace(CONFIG, variant=variant), work_of(3, 20, 2, 3, 2)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: of_baddbmm})
    with torch.no_grad(), counter:
        forward(config, work)
    itself = config.layers * work.candidates * 2 * config.heads * (config.key_dim + config.value_dim)
    assert counter.get_total_flops() + itself == pytest.approx(2 * sum(multiply_adds(config, work).values()))


def test_multiply_adds_of_the_baseline_are_those_of_its_forward_pass() -> None:
    work = work_of(3, 20, 2, 3, 2)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        forward(CONFIG, work, PooledRanker)
    sums = 3 * 2 * 18 * CONFIG.dim  # weights times events, which are no matrix products
    assert counter.get_total_flops() + 2 * sums == pytest.approx(2 * sum(pooled_multiply_adds(CONFIG, work).values()))


def test_a_summary_counts_a_ranker_and_a_plan_its_activations() -> None:
    spec = DatasetSpec(
        name="x",
        label="y",
        dense=(),
        sparse=tuple(
            SparseFeature(name=name, rows=50, pooling_factor=mean) for name, mean in (("item", 30.0), ("user", 1.0))
        ),
    )
    tables = build_sequence_tables(spec.tables(dim=TABLE_DIM))
    ranker = HSTURanker(CONFIG, ["item"], ["user"], table_dim=TABLE_DIM, num_actions=2)
    ranker.expect(longest_tokens=100, sample_tokens=30, sample_candidates=1)
    model = SequenceRanker(tables, ranker)
    optimize_tables_in_backward(tables, OptimizerConfig(kind="sgd", lr=0.1))
    summary, work = describe_model(model, tables, spec, sparse="sgd", dense="adam"), ranker.work(1)
    assert work == work_of(1, 30, 1, 1, 1)
    assert summary.uncounted == []
    assert summary.parts[1].multiply_adds == pytest.approx(sum(multiply_adds(CONFIG, work).values()))

    reserved = []
    for batch_size in (100, 300):
        stats = EstimateStats("x")
        topology = Topology(world_size=2, local_world_size=2, compute_device="cpu", ddr_cap=10**12)
        make_plan(model, tables, topology, ShardingConfig(), batch_size=batch_size, spec=spec, stats=stats)
        assert stats.estimate is not None
        reserved.append(stats.estimate.ddr_reserved[0])
    parts = [activation_bytes(CONFIG, work_of(n, 30 + 200 / n, 1, 1, 1)) for n in (100, 300)]
    assert reserved[1] - reserved[0] > 0.99 * (parts[1] - parts[0])


def of_baddbmm(_: Any, left: Sequence[int], right: Sequence[int], **__: Any) -> int:
    return 2 * left[0] * left[1] * left[2] * right[2]


def test_mlperf_needs_the_operations_that_its_reference_states() -> None:
    work = Work.of_equal_samples(1, 4087, candidates=1, features=3, context=8, table_dim=512)
    found = multiply_adds(MLPERF, work)
    assert found["projections"] * 6 / 1e9 == pytest.approx(77, abs=1)
    assert found["outputs"] * 6 / 1e9 == pytest.approx(58, abs=1)
    assert found["attention"] * 7 / 1e9 == pytest.approx(180, abs=1)
