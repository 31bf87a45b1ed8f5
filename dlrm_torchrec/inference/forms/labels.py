"""How models that are judged by labels are called, served and compared: those of rows, and those of histories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from dlrm_torchrec.datasets.sequences.stream import SequenceStream
from dlrm_torchrec.datasets.stream import Stream
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.quality.paired import standard_errors
from dlrm_torchrec.inference.quality.report import judged_by
from dlrm_torchrec.inference.scoring import Scorer
from dlrm_torchrec.inference.sequences.scorer import SequenceScorer, arguments
from dlrm_torchrec.inference.tables.ids import serve_id_tables
from dlrm_torchrec.inference.tables.serve import serve_tables
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.train.metrics.labels import label_metrics
from dlrm_torchrec.train.metrics.scores import Scores


class Changes(NamedTuple):
    """What a second model of the same rows changes; see ``Report``."""

    before: dict[str, float]
    after: dict[str, float]
    standard_errors: dict[str, float]
    largest_change: float


class Rows:
    """Models of rows."""

    ranks = ""  # the feature of the items that the model ranks; empty if it ranks none

    def __init__(self, spec: DatasetSpec) -> None:
        """``spec`` is that of the rows to be judged by."""
        self.spec = spec  # of what the program takes
        self.features = [feature.name for feature in spec.sparse]  # of batches

    def inputs(self, batch: Any) -> tuple[Any, ...]:
        """What the model takes of a batch."""
        return batch.dense_features, batch.sparse_features

    def arguments(self, batch: Any) -> tuple[Any, ...]:
        """What its program takes of a batch."""
        bags = batch.sparse_features
        return batch.dense_features, bags.values(), bags.lengths(), bags.weights_or_none()

    def logits(self, model: nn.Module, inputs: tuple[Any, ...]) -> torch.Tensor:
        """Those by whose changes the types of tables are chosen."""
        found: torch.Tensor = model(*inputs)
        return found

    def serve_tables(self, model: nn.Module, tables: Any, types: Mapping[str, TableType]) -> nn.Module:
        """``model``, changed in place, with served tables of these types."""
        return serve_tables(model, tables, types, self.features)

    def scorer(self, model: nn.Module) -> nn.Module:
        """The function of tensors of a model with served tables."""
        return Scorer(model, self.spec)

    def judge(self, model: nn.Module, rows: Stream | SequenceStream) -> Any:
        """What the metrics of the trained model follow from."""
        return _predict(lambda batch: self._outputs(model, self.inputs(batch)), rows)

    def judge_served(self, model: nn.Module, program: Any, rows: Stream | SequenceStream) -> Any:  # noqa: ARG002
        """The same of a model with served tables, whose ``program`` is to be served."""
        return _predict(lambda batch: program(*self.arguments(batch))[0], rows)

    def changes(self, before: Any, after: Any) -> Changes:
        """What differs between two of the results of ``judge``."""
        metrics, names = self._measure(before), self.spec.label_names
        errors = standard_errors(metrics, judged_by(metrics), before, after, labels=names)
        largest = float((after.outputs - before.outputs).abs().max())
        return Changes(metrics, self._measure(after), errors, largest)

    def _outputs(self, model: nn.Module, inputs: tuple[Any, ...]) -> torch.Tensor:
        """The trained model's predictions (B, L)."""
        outputs = model(*inputs).reshape(-1, len(self.spec.labels))
        return torch.sigmoid(outputs) if self.spec.target == "binary" else outputs

    def _measure(self, scores: Scores) -> dict[str, float]:
        spec = self.spec
        if spec.target == "binary":
            scores = scores._replace(outputs=torch.logit(scores.outputs, 1e-12))
        return label_metrics(scores, labels=spec.label_names, target=spec.target, learned=False, one_class=True)


class Sequences(Rows):
    """Models of histories with candidates."""

    def inputs(self, batch: Any) -> tuple[Any, ...]:
        return (batch,)

    def arguments(self, batch: Any) -> tuple[Any, ...]:
        return arguments(batch)

    def serve_tables(self, model: nn.Module, tables: Any, types: Mapping[str, TableType]) -> nn.Module:
        return serve_id_tables(model, tables, types, self.features)

    def scorer(self, model: nn.Module) -> nn.Module:
        return SequenceScorer(model, self.spec)


@torch.inference_mode()
def _predict(predict: Callable[[Any], torch.Tensor], stream: Stream | SequenceStream) -> Scores:
    """Predictions (N, L) as float64, labels and weights of every row of a split."""
    scores, labels, weights = [], [], []
    for batch in stream.batches():
        real = batch.num_rows
        scores.append(predict(batch)[:real])
        labels.append(batch.labels[:real].view(real, -1))
        if batch.weights is not None:
            weights.append(batch.weights[:real])
    return Scores(torch.cat(scores).double(), torch.cat(labels), torch.cat(weights) if weights else None)
