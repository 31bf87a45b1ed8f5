"""From a checkpoint to the program of a served model, and what that changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingCollection

from dlrm_torchrec.datasets.sequences.next_items import NextItemStream
from dlrm_torchrec.datasets.sequences.stream import SequenceStream
from dlrm_torchrec.datasets.stream import Stream
from dlrm_torchrec.embeddings.tables import Tables, physical_configs
from dlrm_torchrec.inference.config import QuantizationConfig, TableType
from dlrm_torchrec.inference.forms.labels import Rows, Sequences
from dlrm_torchrec.inference.forms.rankings import NextItems, UserItems
from dlrm_torchrec.inference.mlps.quantize import mlp_bytes, quantize_mlps
from dlrm_torchrec.inference.quality.report import Report
from dlrm_torchrec.inference.scoring import script
from dlrm_torchrec.inference.tables.choose import Errors, choose_types, logit_errors
from dlrm_torchrec.inference.tables.serve import check_types, table_bytes, trained_bytes
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.train.checkpoints.checkpoint import load_unsharded
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.task import RankingTask


class Trained(NamedTuple):
    """A trained model on the CPU, not sharded, with its tables."""

    model: nn.Module
    tables: Tables | EmbeddingCollection
    progress: Progress


class Quantized(NamedTuple):
    """A served model's program, the types of its tables, and what quantising changed."""

    program: torch.jit.ScriptModule
    types: dict[str, TableType]
    report: Report
    errors: Errors  # of each type of each table, if types were chosen for a budget
    form: Rows

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


def form_of(rows: Stream | SequenceStream, columns: tuple[str, str] | None = None) -> Rows:
    """How the model of such rows is called, served and judged.

    ``columns`` are the features of the user and of the item of a model that ranks the items of users. Raises ValueError
    when answers cannot name the items that a model ranks.
    """
    if columns is not None:
        return UserItems(rows.spec, columns)
    if isinstance(rows, NextItemStream):
        return NextItems(rows.spec)
    return Rows(rows.spec) if rows.spec.history is None else Sequences(rows.spec)


def quantize(
    trained: Trained,
    how: QuantizationConfig,
    rows: Stream | SequenceStream,
    *,
    split: str,
    calibration: Iterable[Any],
    form: Rows | None = None,
) -> Quantized:
    """The served model, measured before and after on ``rows`` of the split of this name.

    Static ranges, and the types for a budget, are measured on the ``calibration`` batches, anew for each model: the
    dense parts of a delta are whole anyway, and yesterday's ranges may saturate. The trained model is changed.
    ``form`` is that of the rows, unless another is given.

    Raises ValueError when options do not fit the model.
    """
    model, tables, _ = trained
    form = form or form_of(rows)
    configs = {config.name: config for config in physical_configs(tables)}
    types = dict.fromkeys(configs, how.tables) | how.table_types
    check_types(tables, types)
    inputs = [form.inputs(batch) for batch in calibration]
    before = form.judge(model, rows)
    bytes_before = {"tables": trained_bytes(tables), "mlps": mlp_bytes(model)}
    errors = Errors()
    if how.budget_mib:
        errors = logit_errors(lambda: torch.cat([form.logits(model, batch) for batch in inputs]), tables)
        types = choose_types(tables, errors, int(how.budget_mib * 2**20))
    served = form.serve_tables(model, tables, types)
    if how.mlps != "fp32":
        served = quantize_mlps(served, how.mlps, inputs, bits=how.bits, outliers=how.outliers)
    program = script(form.scorer(served))
    report = Report(
        split=split,
        **form.changes(before, form.judge_served(served, program, rows))._asdict(),
        bytes_before=bytes_before,
        bytes_after={"tables": sum(table_bytes(configs[n], t) for n, t in types.items()), "mlps": mlp_bytes(served)},
    )
    return Quantized(program, types, report, errors, form)
