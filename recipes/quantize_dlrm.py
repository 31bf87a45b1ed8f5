"""Turn a checkpoint into a quantised package for serving: tables of few bits, int8 MLPs, and the vocabularies.

    python recipes/quantize_dlrm.py train_dlrm runs/train_dlrm/demo
    python recipes/quantize_dlrm.py train_dlrm runs/train_dlrm/demo --tables int4 --table-types t_id_0 int8
    python recipes/quantize_dlrm.py my_copy.py runs/my_copy/census --budget-mib 0.05 --bits 4 --outliers 0.02

It takes any run of one or several labels, 0 or 1 or numbers, with compositional tables or without. It refuses data
whose ids or scales mean something else than in training. It prints bytes, metrics and the largest change of a
prediction on the validation rows, and writes them into the package; if AUC falls by more than ``--max-auc-loss``, it
writes nothing. Next: dlrm-recipes serve runs/train_dlrm/demo/package.
Expected: the demo's tables take 31 % of their bytes and its AUC stays within 1e-4, in 20 seconds.
"""

import json
import shlex
import sys
from dataclasses import asdict, dataclass, field
from typing import Literal

from tyro.conf import Positional

from dlrm_torchrec.command_line import read_options
from dlrm_torchrec.inference.config import MlpType, TableType
from dlrm_torchrec.recipe import load_ranking_recipe, read_config


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: Positional[str]  # The recipe that trained the run: its name here, or the path of your copy.
    run: Positional[str]  # The run's folder, with config.json and checkpoints.
    step: int | Literal["best"] | None = None  # Step of the checkpoint, or best by validation; None means the newest.
    data: str = ""  # Another prepared folder with the same features; empty means the run's own data.
    split: str = "val"  # The split whose rows the metrics are measured on.
    batch_size: int = 8192  # Rows that are scored at a time.
    tables: TableType = "int8"  # Number format of the tables' rows.
    table_types: dict[str, TableType] = field(default_factory=dict)  # Formats of single tables: name and format each.
    budget_mib: float = 0  # Maximum size of all tables in MiB, for which their formats are chosen; 0 means no choice.
    mlps: MlpType = "static"  # Format of the MLPs: static int8 has ranges measured before, dynamic int8 per batch.
    bits: int = 7  # Bits of the MLPs' weights.
    outliers: float = 0  # Share of the MLPs' weights, the largest ones, that stay float in a sparse matrix.
    calibration_batches: int = 8  # Number of training batches that a budget and static ranges are measured on.
    max_auc_loss: float = 1e-3  # Maximum fall of AUC, or rise of RMSE by this share; else nothing is written.
    output: str = ""  # Folder of the package; empty means <run>/package.
    debug: bool = False  # Show the call stack of every error.


if __name__ == "__main__":
    COMMAND_LINE = read_options(Config, __doc__)  # before torch is imported, so that --help answers at once

from collections import Counter
from itertools import islice

import torch

from dlrm_torchrec.datasets.open import load_spec, vocabularies
from dlrm_torchrec.datasets.spec_checks import check_same_meaning
from dlrm_torchrec.datasets.stream import Ranks, Stream
from dlrm_torchrec.embeddings.tables import physical_configs
from dlrm_torchrec.inference.mlps.quantize import mlp_bytes, quantize_mlps
from dlrm_torchrec.inference.package import write_package
from dlrm_torchrec.inference.scoring import Scorer, script
from dlrm_torchrec.inference.tables.choose import choose_types, logit_errors
from dlrm_torchrec.inference.tables.serve import check_types, serve_tables, table_bytes, trained_bytes
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.terminal.closing import say_closing
from dlrm_torchrec.terminal.failure import run
from dlrm_torchrec.train.checkpoints.checkpoint import load_unsharded
from dlrm_torchrec.train.checkpoints.folder import checkpoint_path
from dlrm_torchrec.train.checkpoints.marker import read_progress
from dlrm_torchrec.train.log import prefixed
from dlrm_torchrec.train.metrics.labels import label_metrics
from dlrm_torchrec.train.metrics.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Report:
    """What quantising changed, on the rows of ``split``; bytes are by part, tables and MLPs."""

    split: str
    before: dict[str, float]
    after: dict[str, float]
    largest_change: float  # of a prediction
    bytes_before: dict[str, int]
    bytes_after: dict[str, int]


def main(cfg: Config) -> dict[str, float]:
    recipe = load_ranking_recipe(cfg.recipe)
    trained = read_config(recipe, cfg.run)
    data = cfg.data or trained.data
    spec = load_spec(data, trained.shape)
    checkpoint = checkpoint_path(f"{cfg.run}/checkpoints", cfg.step)
    check_same_meaning(DatasetSpec.from_json(read_progress(checkpoint).identity["spec"]), spec, data)

    # the trained model, unsharded
    task, tables = recipe.build(trained, spec, 1, torch.device("cpu"))
    configs = {config.name: config for config in physical_configs(tables)}
    types = dict.fromkeys(configs, cfg.tables) | cfg.table_types
    check_types(tables, types)
    tables.to_empty(device="cpu")
    progress = load_unsharded(task, checkpoint)
    model = task.model.eval()

    # rows to measure on: some of training, and a whole split
    ranks = Ranks(cfg.batch_size, 0, 1)
    streams = recipe.open_streams(data, spec, ranks, rows=trained.rows, epochs=1, seed=trained.seed, lanes=1)
    if cfg.split not in streams:
        raise ValueError(f"split must be one of {data}: got {cfg.split!r}; name one of {sorted(streams)}")
    inputs = [
        (batch.dense_features, batch.sparse_features)
        for batch in islice(streams["train"].batches(), cfg.calibration_batches)
    ]
    words = vocabularies(data, spec)

    # score, quantise tables and MLPs, and score again
    before = predict(Scorer(model, spec), streams[cfg.split])
    bytes_before = {"tables": trained_bytes(tables), "mlps": mlp_bytes(model)}
    if cfg.budget_mib:
        errors = logit_errors(lambda: torch.cat([model(*batch) for batch in inputs]), tables)
        types = choose_types(tables, errors, int(cfg.budget_mib * 2**20))
        for name, kind in types.items():
            print(f"{name}: {kind}, which changes logits by {errors[name][kind] ** 0.5:.1e} (RMS)", file=sys.stderr)
    model = serve_tables(model, tables, types, [feature.name for feature in spec.sparse])
    if cfg.mlps != "fp32":
        model = quantize_mlps(model, cfg.mlps, inputs, bits=cfg.bits, outliers=cfg.outliers)
    served = script(Scorer(model, spec))
    after = predict(served, streams[cfg.split])
    report = Report(
        split=cfg.split,
        before=measure(before, spec),
        after=measure(after, spec),
        largest_change=float((after.outputs - before.outputs).abs().max()),
        bytes_before=bytes_before,
        bytes_after={"tables": sum(table_bytes(configs[n], t) for n, t in types.items()), "mlps": mlp_bytes(model)},
    )
    describe(report, types)

    # write the package, unless the model has become too much worse
    lost = loss_of_quality(report)
    if lost > cfg.max_auc_loss:
        changed = "AUC must not fall" if spec.target == "binary" else "RMSE must not rise by a share"
        raise ValueError(
            f"{changed} by more than {cfg.max_auc_loss:g}: got {lost:.2g}, and nothing was written; give tables more "
            "bits, keep outliers, or raise --max-auc-loss"
        )
    facts = {"recipe": cfg.recipe, "run": cfg.run, "mlps": cfg.mlps, "bits": cfg.bits, "outliers": cfg.outliers}
    facts |= {"steps": progress.step, "tables": types}
    output = cfg.output or f"{cfg.run}/package"
    write_package(output, served, spec, vocabularies=words, model_facts=facts, metrics=asdict(report))
    say_closing(wrote=[output], next=[shlex.join(["dlrm-recipes", "serve", output])])
    final = prefixed(f"{cfg.split}/", report.after) | prefixed(f"before/{cfg.split}/", report.before)
    final |= {"largest_change": report.largest_change, "steps": progress.step}
    final |= prefixed("bytes/", report.bytes_after) | prefixed("before/bytes/", report.bytes_before)
    print(json.dumps(final), flush=True)
    return final


def describe(report: Report, types: dict[str, TableType]) -> None:
    """Print what quantising changed, a line each, on standard error."""
    print(f"tables by type: {dict(Counter(types.values()))}", file=sys.stderr)
    for part, size in report.bytes_before.items():
        smaller = report.bytes_after[part]
        share = f", {smaller / size:.1%}" if size else ""  # some models have no MLPs
        print(f"{part}: {size:,} bytes before, {smaller:,} after{share}", file=sys.stderr)
    for name, before in report.before.items():
        if name.rpartition("/")[2] not in ("positives", "samples"):
            after = report.after[name]
            print(f"{name}: {before:.5f} before, {after:.5f} after, {after - before:+.1e}", file=sys.stderr)
    print(f"largest change of a prediction: {report.largest_change:.1e}", file=sys.stderr)


@torch.inference_mode()
def predict(model: torch.nn.Module, stream: Stream) -> Scores:
    """Predictions (N, L) as float64, labels and weights of every row of a split."""
    scores, labels, weights = [], [], []
    for batch in stream.batches():
        ids, real = batch.sparse_features, batch.num_rows
        predictions, _ = model(batch.dense_features, ids.values(), ids.lengths(), ids.weights_or_none())
        scores.append(predictions[:real])
        labels.append(batch.labels[:real].view(real, -1))
        if batch.weights is not None:
            weights.append(batch.weights[:real])
    return Scores(torch.cat(scores).double(), torch.cat(labels), torch.cat(weights) if weights else None)


def measure(scores: Scores, spec: DatasetSpec) -> dict[str, float]:
    if spec.target == "binary":
        scores = scores._replace(outputs=torch.logit(scores.outputs, 1e-12))
    return label_metrics(scores, labels=[label.name for label in spec.labels], target=spec.target, learned=False)


def loss_of_quality(report: Report) -> float:
    """The largest fall of a label's AUC, or rise of its RMSE as a share of it."""
    pairs = [(name.rpartition("/")[2], value, report.after[name]) for name, value in report.before.items()]
    falls = [before - after for metric, before, after in pairs if metric == "auc"]
    return max(falls or [after / before - 1 for metric, before, after in pairs if metric == "rmse"])


if __name__ == "__main__":
    run(main, COMMAND_LINE)
