"""How models that rank items are called, served and compared: by histories, or by users."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dlrm_torchrec.datasets.sequences.next_items import drawn_name
from dlrm_torchrec.datasets.sequences.stream import SequenceStream
from dlrm_torchrec.datasets.stream import Stream
from dlrm_torchrec.inference.forms.labels import Changes, Rows, Sequences
from dlrm_torchrec.inference.package import check_ranks
from dlrm_torchrec.inference.quality.paired import standard_error_of_ndcg
from dlrm_torchrec.inference.quality.report import judged_by
from dlrm_torchrec.inference.ranking.next_item import NextItemScorer
from dlrm_torchrec.inference.ranking.user_item import UserItemScorer
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.train.metrics.leave_one_out import HeldOut, held_out, leave_one_out_metrics
from dlrm_torchrec.train.metrics.next_item import ranked


class NextItems(Sequences):
    """Models that rank all items by a history."""

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__(spec)
        (self.ranks,) = self.features
        check_ranks(spec, self.ranks)
        self.features = [self.ranks, drawn_name(self.ranks)]

    def logits(self, model: nn.Module, inputs: tuple[Any, ...]) -> torch.Tensor:
        """Those of the items that came; those of others may be infinite."""
        return super().logits(model, inputs)[:, :1]

    def scorer(self, model: nn.Module) -> nn.Module:
        return NextItemScorer(model, self.spec)

    @torch.inference_mode()
    def judge(self, model: nn.Module, rows: Stream | SequenceStream) -> HeldOut:
        found = [ranked(model(batch)[: batch.num_rows]) for batch in rows.batches()]
        return HeldOut(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def judge_served(self, model: nn.Module, program: Any, rows: Stream | SequenceStream) -> HeldOut:  # noqa: ARG002
        """That of the served parts; the program gives the best items, and not the rank of the one that came."""
        return self.judge(model, rows)

    def changes(self, before: HeldOut, after: HeldOut) -> Changes:
        return _changes(before, after)


class UserItems(Rows):
    """Models that rank the items of a user, who has rows with one that came and others that did not."""

    def __init__(self, spec: DatasetSpec, columns: tuple[str, str]) -> None:
        """``columns`` are the features of the user and of the item."""
        super().__init__(spec)
        self.user, self.ranks = columns
        check_ranks(spec, self.ranks)
        self.spec = user_item_spec(spec, columns)

    def scorer(self, model: nn.Module) -> nn.Module:
        return UserItemScorer(model, self.spec, self.features)

    @torch.inference_mode()
    def judge(self, model: nn.Module, rows: Stream | SequenceStream) -> HeldOut:
        users, scores, labels = [], [], []
        for batch in rows.batches():
            users.append(batch.ids_of_rows(self.user))
            scores.append(model(*self.inputs(batch)).squeeze(1)[: batch.num_rows])
            labels.append(batch.labels[: batch.num_rows])
        return held_out(torch.cat(users), torch.cat(scores), torch.cat(labels))

    def judge_served(self, model: nn.Module, program: Any, rows: Stream | SequenceStream) -> HeldOut:  # noqa: ARG002
        """That of the served parts; the program gives the best items, and not the scores of others."""
        return self.judge(model, rows)

    def changes(self, before: HeldOut, after: HeldOut) -> Changes:
        return _changes(before, after)


def user_item_spec(spec: DatasetSpec, columns: tuple[str, str]) -> DatasetSpec:
    """The spec of requests: a row is a user with the list of the items that are no answers, such as those taken."""
    user, item = (next(feature for feature in spec.sparse if feature.name == name) for name in columns)
    return replace(spec, dense=(), sparse=(user, replace(item, multi_hot=True)))


def _changes(before: HeldOut, after: HeldOut) -> Changes:
    metrics = leave_one_out_metrics(before)
    errors = {judged_by(metrics): standard_error_of_ndcg(before, after)}
    largest = float((after.scores - before.scores).abs().max())
    return Changes(metrics, leave_one_out_metrics(after), errors, largest)
