"""The ranks of next items among all items, by the recipe's model and streams, against a loop over users in float64."""

from __future__ import annotations

from collections.abc import Iterator
from math import log2

import numpy as np
import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.next_items import NextItemStream, next_item_spec
from dlrm_torchrec.datasets.sequences.samples import Samples, find_samples
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.models.hstu.config import HSTUConfig
from dlrm_torchrec.models.hstu.next_item import HSTUNextItem
from dlrm_torchrec.models.hstu.next_item_model import NextItemModel, NextItemScores
from dlrm_torchrec.train.metrics.gates import TrainingError
from dlrm_torchrec.train.metrics.next_item import evaluate, ranked
from dlrm_torchrec.train.task import NextItemTask
from dlrm_torchrec.train.world import World
from tests.datasets.sequences.logs import HISTORY, SPEC, random_log
from tests.distributed import here, run_ranks

CONFIG = HSTUConfig(dim=6, heads=1, key_dim=4, value_dim=4, most_tokens=12, positions=12, layers=1)
LOG = random_log(8, users=40)
SAMPLES = find_samples(LOG, HISTORY, SamplesConfig(history=9, held_out="last"), split="test")


def task(world_size: int = 1) -> NextItemTask:
    """The same task at every call."""
    torch.manual_seed(4)
    spec = next_item_spec(SPEC)
    names = [feature.name for feature in spec.sparse]
    config = EmbeddingConfig(name="t_song", num_embeddings=50, embedding_dim=8, feature_names=names)
    tables = EmbeddingCollection([config], device=torch.device("cpu"))
    return NextItemTask(NextItemModel(tables, NextItemScores(HSTUNextItem(CONFIG), *names)), world_size)


def parts(task: NextItemTask) -> tuple[HSTUNextItem, torch.Tensor]:
    """The dense part and the table without the numbers that the model leaves out."""
    model = task.model
    assert isinstance(model, NextItemModel)
    return model.score.next_item, next(iter(model.tables.parameters()))[:, : CONFIG.dim]


def batches(rank: int = 0, size: int = 1, *, training: bool = False, draws: int = 0) -> Iterator[SequenceBatch]:
    return NextItemStream(
        next_item_spec(SPEC), SAMPLES, Ranks(8, rank, size), training=training, draws=draws, batch_by="rows",
        shuffle=False, seed=1,
    ).batches()  # fmt: skip


def metrics_of_a_rank() -> dict[str, float]:
    world = here()
    return evaluate(task(world.size), batches(world.rank, world.size), world, learned=False)


@torch.no_grad()
def naive() -> dict[str, float]:
    """HR@10 and NDCG@10 by a loop: sort all items that the user's history does not have."""
    next_item, table = parts(task().eval().double())
    hits, gains, aucs = [], [], []
    for sample in range(len(SAMPLES)):
        history, _ = SAMPLES.history(np.array([sample]))
        places = np.append(history, SAMPLES.candidates[sample])
        items = torch.from_numpy(LOG.events["song"][places].astype(np.int64))
        states = next_item(table[items], torch.from_numpy(LOG.times[places]), torch.tensor([len(places)]))
        target, seen = int(items[-1]), set(items[:-1].tolist())
        scores = torch.cosine_similarity(states[-2][None], table)
        answers = [item for item in range(50) if item == target or item not in seen]
        rank = sorted(answers, key=lambda item: -float(scores[item])).index(target) + 1
        hits.append(float(rank <= 10))
        gains.append(1 / log2(rank + 1) if rank <= 10 else 0.0)
        aucs.append(1 - (rank - 1) / (len(answers) - 1))
    return {"hr@10": float(np.mean(hits)), "ndcg@10": float(np.mean(gains)), "auc": float(np.mean(aucs))}


def test_metrics_are_those_of_a_sorted_list_of_all_items_on_any_ranks() -> None:
    expected = naive() | {"positives": float(len(SAMPLES))}
    assert 0 < expected["ndcg@10"] < expected["hr@10"] < 1
    for size in (1, 2):
        for found in run_ranks(size, metrics_of_a_rank):
            assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_a_rank_without_samples_tells_nothing_and_does_not_fail() -> None:
    one = Samples(LOG, SAMPLES.rule, SAMPLES.candidates[:1], SAMPLES.bounds[:2])
    for rank, expected in ((0, 1), (1, 0)):
        (batch,) = NextItemStream(
            next_item_spec(SPEC), one, Ranks(8, rank, 2), training=False, draws=0, batch_by="rows", shuffle=False
        ).batches()
        _, (_, logits, rows) = task(2).eval()(batch)
        assert (len(logits), rows) == (expected, 1)


def test_the_loss_is_that_of_softmax_over_the_right_item_and_the_others() -> None:
    model = task().train()
    next_item, table = parts(model)
    next_item.eval()  # no dropout
    for batch in batches(training=True, draws=7):
        loss, (_, logits, _) = model(batch)
        items, starts = batch.sparse_features["song"].values(), (batch.lengths.cumsum(0) - batch.lengths).tolist()
        drawn = batch.sparse_features["song drawn"].values()
        states = next_item(table[items], batch.times, batch.lengths)
        losses = []
        for start, length in zip(starts, batch.lengths.tolist(), strict=True):
            for place in range(start + 1, start + length):
                others = [int(item) for item in drawn if item != items[place]]
                cosines = torch.cosine_similarity(states[place - 1][None], table[[int(items[place]), *others]])
                losses.append(-(cosines / 0.05).log_softmax(0)[0])
        assert len(losses) == len(logits) == batch.global_rows
        assert float(loss) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_a_rank_counts_items_above_and_equal_and_leaves_out_what_is_no_answer() -> None:
    inf = torch.inf
    found = ranked(torch.tensor([[1.0, 2.0, 1.0, -inf, 0.0], [3.0, -inf, -inf, 1.0, 1.0]]))
    assert [part.tolist() for part in found] == [[1.0, 3.0], [1, 0], [1, 0], [3, 2]]
    model = task()
    torch.nn.init.constant_(parts(model)[0].places.weight, torch.nan)
    alone = World(rank=0, size=1, local_size=1, device=torch.device("cpu"), control=None)  # type: ignore[arg-type]  # alone
    with pytest.raises(TrainingError, match="logits must be finite: got NaN or infinity in evaluation"):
        evaluate(model, batches(), alone, learned=False)
