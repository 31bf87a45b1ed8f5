"""From a checkpoint to the program of a served model, and what that changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingCollection

from dlrm_torchrec.datasets.sequences.stream import SequenceStream
from dlrm_torchrec.datasets.stream import Stream
from dlrm_torchrec.embeddings.tables import Tables, physical_configs
from dlrm_torchrec.inference.config import QuantizationConfig, TableType
from dlrm_torchrec.inference.mlps.quantize import mlp_bytes, quantize_mlps
from dlrm_torchrec.inference.quality.paired import standard_errors
from dlrm_torchrec.inference.quality.report import Report, judged_by
from dlrm_torchrec.inference.scoring import Scorer, script
from dlrm_torchrec.inference.sequences.scorer import SequenceScorer, arguments
from dlrm_torchrec.inference.tables.choose import Errors, choose_types, logit_errors
from dlrm_torchrec.inference.tables.ids import serve_id_tables
from dlrm_torchrec.inference.tables.serve import check_types, serve_tables, table_bytes, trained_bytes
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.train.checkpoints.checkpoint import load_unsharded
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.metrics.labels import label_metrics
from dlrm_torchrec.train.metrics.scores import Scores
from dlrm_torchrec.train.task import RankingTask


class Trained(NamedTuple):
    """A trained model on the CPU, not sharded, with its tables."""

    model: nn.Module
    tables: Tables | EmbeddingCollection
    progress: Progress


class Form(NamedTuple):
    """How a model of rows, or one of histories, is called and served."""

    inputs: Callable[[Any], tuple[Any, ...]]  # of the model, from a batch
    arguments: Callable[[Any], tuple[Any, ...]]  # of its program
    serve_tables: Callable[..., nn.Module]
    scorer: Callable[[nn.Module, DatasetSpec], nn.Module]


ROWS = Form(
    lambda batch: (batch.dense_features, batch.sparse_features),
    lambda batch: (
        batch.dense_features,
        batch.sparse_features.values(),
        batch.sparse_features.lengths(),
        batch.sparse_features.weights_or_none(),
    ),
    serve_tables,
    Scorer,
)
SEQUENCES = Form(lambda batch: (batch,), arguments, serve_id_tables, SequenceScorer)


class Quantized(NamedTuple):
    """A served model's program, the types of its tables, and what quantising changed."""

    program: torch.jit.ScriptModule
    types: dict[str, TableType]
    report: Report
    errors: Errors  # of each type of each table, if types were chosen for a budget

    def facts(self, how: QuantizationConfig) -> dict[str, Any]:
        """What a package says of the model."""
        return {"mlps": how.mlps, "bits": how.bits, "outliers": how.outliers, "tables": self.types}

    @property
    def metrics(self) -> dict[str, Any]:
        """What a package says of the model's quality."""
        return asdict(self.report)


def load_trained(
    build: Callable[..., tuple[RankingTask, Tables | EmbeddingCollection]], cfg: Any, spec: DatasetSpec, checkpoint: str
) -> Trained:
    """The model of a checkpoint, which a recipe's ``build`` makes for the config ``cfg``."""
    task, tables = build(cfg, spec, 1, torch.device("cpu"))
    tables.to_empty(device="cpu")
    progress = load_unsharded(task, checkpoint)
    return Trained(task.model.eval(), tables, progress)


def quantize(
    trained: Trained,
    how: QuantizationConfig,
    rows: Stream | SequenceStream,
    *,
    split: str,
    calibration: Iterable[Any],
) -> Quantized:
    """The served model, measured before and after on ``rows`` of the split of this name.

    Static ranges, and the types for a budget, are measured on the ``calibration`` batches, anew for each model: the
    dense parts of a delta are whole anyway, and yesterday's ranges may saturate. The trained model is changed.

    Raises ValueError when options do not fit the model.
    """
    model, tables, _ = trained
    spec = rows.spec
    configs = {config.name: config for config in physical_configs(tables)}
    types = dict.fromkeys(configs, how.tables) | how.table_types
    check_types(tables, types)
    form = ROWS if spec.history is None else SEQUENCES
    inputs = [form.inputs(batch) for batch in calibration]
    before = _predict(lambda batch: _outputs(model, form.inputs(batch), spec), rows)
    bytes_before = {"tables": trained_bytes(tables), "mlps": mlp_bytes(model)}
    errors = Errors()
    if how.budget_mib:
        errors = logit_errors(lambda: torch.cat([model(*batch) for batch in inputs]), tables)
        types = choose_types(tables, errors, int(how.budget_mib * 2**20))
    model = form.serve_tables(model, tables, types, [feature.name for feature in spec.sparse])
    if how.mlps != "fp32":
        model = quantize_mlps(model, how.mlps, inputs, bits=how.bits, outliers=how.outliers)
    program = script(form.scorer(model, spec))
    after = _predict(lambda batch: program(*form.arguments(batch))[0], rows)
    measured = _measure(before, spec)
    report = Report(
        split=split,
        before=measured,
        after=_measure(after, spec),
        standard_errors=standard_errors(measured, judged_by(measured), before, after, labels=spec.label_names),
        largest_change=float((after.outputs - before.outputs).abs().max()),
        bytes_before=bytes_before,
        bytes_after={"tables": sum(table_bytes(configs[n], t) for n, t in types.items()), "mlps": mlp_bytes(model)},
    )
    return Quantized(program, types, report, errors)


def _outputs(model: nn.Module, inputs: tuple[Any, ...], spec: DatasetSpec) -> torch.Tensor:
    """The trained model's predictions (B, L)."""
    outputs = model(*inputs).reshape(-1, len(spec.labels))
    return torch.sigmoid(outputs) if spec.target == "binary" else outputs


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


def _measure(scores: Scores, spec: DatasetSpec) -> dict[str, float]:
    if spec.target == "binary":
        scores = scores._replace(outputs=torch.logit(scores.outputs, 1e-12))
    return label_metrics(
        scores, labels=[label.name for label in spec.labels], target=spec.target, learned=False, one_class=True
    )
