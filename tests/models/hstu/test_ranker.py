"""HSTU and its pooled baseline as rankers: what a candidate's logit depends on, and what it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from math import cos, pi, sin
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from dlrm_torchrec.models.hstu.config import HSTUConfig, Variant
from dlrm_torchrec.models.hstu.heads import calendar
from dlrm_torchrec.models.hstu.model import SequenceRanker
from dlrm_torchrec.models.hstu.pooled import PooledRanker
from dlrm_torchrec.models.hstu.ranker import Encoding, HSTURanker
from dlrm_torchrec.models.hstu.tokens import Samples

CONFIG = HSTUConfig(dim=8, heads=2, key_dim=3, value_dim=4, hidden=6, most_tokens=20, positions=9, time_buckets=16)
EVENTS, CONTEXT, DIM, ACTIONS = ("item", "artist"), ("user", "segment"), 5, 3
SAMPLES = [(4, 2), (0, 0), (1, 1), (0, 3), (7, 1), (0, 0)]  # events and candidates
Rows = dict[str, JaggedTensor]
KINDS = pytest.mark.parametrize("kind", ["paper", "mlperf", "pooled"])


def build(kind: str, context: tuple[str, ...] = CONTEXT, **options: int) -> HSTURanker | PooledRanker:
    config = replace(CONFIG, **options)  # type: ignore[arg-type]  # integers
    if kind == "pooled":
        return PooledRanker(config, EVENTS, context, table_dim=DIM, num_actions=ACTIONS).eval()
    variant: Variant = "paper" if kind == "paper" else "mlperf"
    config = replace(config, variant=variant)
    return HSTURanker(config, EVENTS, context, table_dim=DIM, num_actions=ACTIONS).eval()


def draw(counts: list[tuple[int, int]]) -> tuple[Rows, Samples]:
    histories, candidates = torch.tensor(counts).T
    lengths = histories + candidates
    tokens, real = int(lengths.sum()), (lengths > 0).long()
    times = torch.cat([torch.randint(10**6, (n,)).sort().values for n in lengths.tolist()])
    actions = torch.cat([torch.tensor([1 + i % ACTIONS for i in range(h)] + [0] * c) for h, c in counts]).long()
    rows = {name: JaggedTensor(torch.randn(tokens, DIM), lengths=lengths) for name in EVENTS}
    rows |= {name: JaggedTensor(torch.randn(int(real.sum()), DIM), lengths=real) for name in CONTEXT}
    return rows, Samples(times, actions, lengths, candidates)


def changed(rows: Rows, name: str, place: int) -> Rows:
    values = rows[name].values().clone()
    values[place] += 1
    return rows | {name: JaggedTensor(values, lengths=rows[name].lengths())}


@KINDS
def test_a_sample_is_scored_alike_alone_and_among_others(kind: str) -> None:
    ranker, (rows, samples) = build(kind), draw(SAMPLES)
    together, ends, real = ranker(rows, samples), samples.lengths.cumsum(0).tolist(), 0
    assert together.shape == (7, 1)
    alone = []
    for number, (end, length) in enumerate(zip(ends, samples.lengths.tolist(), strict=True)):
        if length:
            tokens, users, ones = slice(end - length, end), slice(real, real + 1), torch.ones(1, dtype=torch.long)
            own: Mapping[str, JaggedTensor] = {
                name: JaggedTensor(rows[name].values()[part], lengths=ones * size)
                for names, part, size in ((EVENTS, tokens, length), (CONTEXT, users, 1))
                for name in names
            }
            which = slice(number, number + 1)
            alone.append(
                ranker(own, Samples(samples.times[tokens], samples.actions[tokens], *(x[which] for x in samples[2:])))
            )
            real += 1
    torch.testing.assert_close(torch.cat(alone), together)


@KINDS
def test_candidates_know_the_history_and_the_context_but_not_each_other(kind: str) -> None:
    ranker, (rows, samples) = build(kind), draw([(4, 3), (2, 1)])
    before = ranker(rows, samples)

    def moved(other: Rows, samples: Samples = samples) -> list[bool]:
        return [bool(each) for each in (ranker(other, samples) - before).abs().squeeze(1) > 0]

    assert moved(changed(rows, "artist", 2)) == [True, True, True, False]  # an event of the first sample
    assert moved(changed(rows, "user", 1)) == [False, False, False, True]
    for candidate in range(3):
        expected = [each == candidate for each in range(3)] + [False]
        assert moved(changed(rows, "item", 4 + candidate)) == expected
    acted = samples.actions.clone()
    acted[1] = 1 + acted[1] % ACTIONS
    assert moved(rows, samples._replace(actions=acted)) == [True, True, True, False]
    later = samples.times.clone()
    later[7:9] = later[9]  # the events of the second sample become new
    assert moved(rows, samples._replace(times=later)) == [False, False, False, kind != "pooled"]


@KINDS
@pytest.mark.parametrize("context", [(), CONTEXT])
def test_chunks_change_neither_logits_nor_gradients(kind: str, context: tuple[str, ...]) -> None:
    rows, samples = draw([*SAMPLES, (3, 1), (12, 2)])
    whole, found = build(kind, context).double(), []
    for chunk_tokens in (0, 1, 6, 1000):
        ranker = build(kind, context, chunk_tokens=chunk_tokens).double()
        ranker.load_state_dict(whole.state_dict())
        leaves = {name: jagged.values().double().requires_grad_() for name, jagged in rows.items()}
        exact = {name: JaggedTensor(leaf, lengths=rows[name].lengths()) for name, leaf in leaves.items()}
        logits = ranker(exact, samples)
        logits.square().sum().backward()
        used = [leaf.grad for name, leaf in leaves.items() if name in (*EVENTS, *context)]
        found.append([logits.detach(), *used, *(parameter.grad for parameter in ranker.parameters())])
        with torch.no_grad():
            torch.testing.assert_close(ranker(exact, samples), found[-1][0])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@KINDS
def test_a_rank_whose_samples_are_all_padding_has_no_logits_and_gradients_of_zero(kind: str) -> None:
    for chunk_tokens in (0, 5):
        ranker, (rows, samples) = build(kind, chunk_tokens=chunk_tokens), draw([(0, 0), (0, 0)])
        logits = ranker(rows, samples)
        assert logits.shape == (0, 1)
        logits.sum().backward()
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in ranker.parameters())


@KINDS
def test_context_of_another_number_of_samples_is_refused(kind: str) -> None:
    rows, samples = draw(SAMPLES)
    rows["user"] = JaggedTensor(torch.randn(7, DIM), lengths=samples.num_candidates)
    with pytest.raises(ValueError, match=r"feature 'user' must have one id for each sample: got 7 ids for 4 samples"):
        build(kind)(rows, samples)


@pytest.mark.parametrize(("variant", "factor"), [("paper", 1), ("mlperf", 8**0.5)])
def test_places_count_back_from_the_candidates_and_ages_are_roots_of_minutes(variant: Variant, factor: float) -> None:
    encoding = Encoding(replace(CONFIG, variant=variant), num_context=2)
    tokens, far, ages = torch.randn(4, 8), torch.tensor([0, 1, 6, 50]), torch.tensor([0, 240, 3599, 10**9])
    places, buckets = encoding.places.weight[[2, 3, 8, 8]], encoding.ages.weight[[0, 2, 7, 15]]
    torch.testing.assert_close(encoding.events(tokens, far, ages), tokens * factor + places + buckets)
    context = torch.randn(3, 2, 8)
    expected = context * factor + encoding.places.weight[:2] + encoding.ages.weight[16]
    torch.testing.assert_close(encoding.context(context), expected)


def test_the_calendar_is_that_of_universal_time() -> None:
    times = torch.randint(2 * 10**9, (50,))
    for found, seconds in zip(calendar(times), times.tolist(), strict=True):
        moment = datetime.fromtimestamp(seconds, UTC)
        hour, day = moment.hour * 2 * pi / 24, (moment.weekday() + 4) % 7 * 2 * pi / 7  # 1970 began on a Thursday
        expected = torch.tensor([cos(hour), sin(hour), cos(day), sin(day)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Task(nn.Module):
    """As the tasks of recipes are: TorchRec's pipelines trace them with fx."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: SimpleNamespace) -> torch.Tensor:
        logits: torch.Tensor = self.model(batch)
        return logits.squeeze(-1)


def test_tables_and_a_ranker_score_a_batch_also_when_traced() -> None:
    tables = EmbeddingCollection(
        tables=[
            EmbeddingConfig(name=f"t_{name}", num_embeddings=9, embedding_dim=DIM, feature_names=[name])
            for name in (*EVENTS, *CONTEXT)
        ]
    )
    model = Task(SequenceRanker(tables, build("paper")))
    _, samples = draw(SAMPLES)
    lengths = torch.cat([samples.lengths, samples.lengths, (samples.lengths > 0).long().repeat(2)])
    ids = KeyedJaggedTensor([*EVENTS, *CONTEXT], torch.randint(9, (int(lengths.sum()),)), lengths=lengths)
    batch = SimpleNamespace(sparse_features=ids, **samples._asdict())

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, _: str) -> bool:
            return isinstance(m, EmbeddingCollection | HSTURanker)

    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    torch.testing.assert_close(traced(batch), model(batch))
    assert model(batch).shape == (7,)
