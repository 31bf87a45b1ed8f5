"""An evaluation: its forward pass, and the exact AUC of the scores where they then lie."""

from __future__ import annotations

import torch

from dlrm_torchrec.train.metrics.binary import ranking_metrics
from dlrm_torchrec.train.metrics.scores import predict
from dlrm_torchrec.train.world import join_world

from ..proof import Proof
from ..shapes import kaggle, pinned, random_batches, repeated
from ..training import Trainer


def exact_auc(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of ordered pairs, by ranks in float64 on the CPU; equal logits share their mean rank."""
    _, place, count = torch.unique(logits.cpu(), return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    rank = (last - (count - 1) / 2)[place]
    positive = labels.cpu().double()
    hits = positive.sum()
    return float(((rank * positive).sum() - hits * (hits + 1) / 2) / (hits * (len(positive) - hits)))


def prove(proof: Proof) -> None:
    place = torch.device("cpu")
    with proof.guarded("evaluation's forward, kaggle-like"), join_world(seed=0) as world:
        recipe, cfg = kaggle(toy=proof.toy, batch_size=16_384)
        trainer = Trainer(recipe, cfg, world)
        batches = pinned(random_batches(cfg.shape, cfg.batch_size, count=4, device=proof.device))
        times = 2 if proof.toy else 100
        place = predict(trainer.model, repeated(batches, 2), world).outputs.device
        begin = proof.now()
        predict(trainer.model, repeated(batches, times), world)
        rate = times * cfg.batch_size / (proof.now() - begin)
        proof.measured("evaluation's forward, kaggle-like", rate, unit="samples/s", note=f"scores on {place}")
    draw = torch.Generator(place).manual_seed(0)
    for rows in (1000,) if proof.toy else (1_000_000, 10_000_000):
        name = f"AUC of {rows:,} scores on {place.type}"
        with proof.guarded(name):
            logits = (torch.randn(rows, generator=draw, device=place) * 64).round() / 64
            labels = torch.bernoulli(torch.sigmoid(logits), generator=draw)
            begin = proof.now()
            found = ranking_metrics(logits, labels)["auc"]
            seconds = proof.now() - begin
            proof.correct(name, abs(found - exact_auc(logits, labels)), at_most=1e-9, unit="from exact")
            proof.measured(f"metrics of {rows:,} scores", rows / seconds / 1e6, unit="M rows/s")
