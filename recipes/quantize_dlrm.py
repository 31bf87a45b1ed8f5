"""Make of a checkpoint a quantised model that serves: a folder with tables of few bits, int8 MLPs and vocabularies.

    python recipes/quantize_dlrm.py train_dlrm runs/train_dlrm/demo
    python recipes/quantize_dlrm.py train_dlrm runs/train_dlrm/demo --tables int4 --table-types t_id_0 int8
    python recipes/quantize_dlrm.py my_copy.py runs/my_copy/census --budget-mib 0.05 --bits 4 --outliers 0.02

Takes any run with binary labels, compositional tables included. Prints bytes, metrics and the largest change of a
probability on the validation rows, and writes them into the package; where AUC falls by more than ``--max-auc-loss``,
nothing is written. Next: dlrm-recipes serve runs/train_dlrm/demo/package. Expected: the demo's tables in 31 % of
their bytes, its AUC the same within 1e-4, in 20 seconds.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal, TypedDict

import torch
import tyro
from iopath.common.file_io import g_pathmgr
from tyro.conf import Positional

from dlrm_torchrec.datasets.open import load_spec, vocabularies
from dlrm_torchrec.datasets.stream import Ranks, Stream
from dlrm_torchrec.embeddings.tables import physical_configs
from dlrm_torchrec.inference.mlps.quantize import mlp_bytes, quantize_mlps
from dlrm_torchrec.inference.package import write_package
from dlrm_torchrec.inference.scoring import Scorer, script
from dlrm_torchrec.inference.tables.choose import choose_types, logit_errors
from dlrm_torchrec.inference.tables.serve import check_types, serve_tables, table_bytes, table_weights
from dlrm_torchrec.inference.tables.types import TableType
from dlrm_torchrec.recipe import load_recipe, restore
from dlrm_torchrec.train.checkpoints.checkpoint import checkpoint_path, load_unsharded
from dlrm_torchrec.train.log import prefixed
from dlrm_torchrec.train.metrics.binary import ranking_metrics


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: Positional[str]  # that trained the run: its name here, or the path of your copy
    run: Positional[str]  # its folder, with config.json and checkpoints
    step: int | None = None  # of the checkpoint; the newest by default
    data: str = ""  # another prepared folder with the same features; the run's by default
    split: str = "val"  # whose rows metrics are of
    batch_size: int = 8192
    tables: TableType = "int8"  # how rows of tables are stored
    table_types: dict[str, TableType] = field(default_factory=dict)  # the same of single tables
    budget_mib: float = 0  # of all tables, whose types are then chosen by what they change; 0: types as told
    mlps: Literal["fp32", "dynamic", "static"] = "static"  # int8: ranges of batches before, or of each batch
    bits: int = 7  # of the MLPs' weights
    outliers: float = 0  # share of the MLPs' weights, the largest, that stay float as a sparse matrix
    calibration_batches: int = 8  # of training rows, that a budget and static ranges are measured on
    max_auc_loss: float = 1e-3  # a model that loses more is not written
    output: str = ""  # the package; <run>/package by default


class Change(TypedDict):
    """What quantising changed, as the package keeps it."""

    split: str
    before: dict[str, float]  # metrics
    after: dict[str, float]
    largest_change: float  # of a probability
    bytes_before: dict[str, int]  # of tables and mlps
    bytes_after: dict[str, int]


def main(cfg: Config) -> dict[str, float]:
    recipe = load_recipe(cfg.recipe)
    if not hasattr(recipe, "open_streams"):
        raise ValueError(f"recipe must read binary labels by open_streams: got {cfg.recipe!r}; name one that does")
    if not g_pathmgr.exists(f"{cfg.run}/config.json"):
        raise ValueError(f"run must be the folder of a run, with config.json: got {cfg.run!r}; name one under runs/")
    with g_pathmgr.open(f"{cfg.run}/config.json", "r") as stream:
        trained = restore(recipe.Config, json.load(stream))
    if getattr(trained, "compile", False):
        trained = replace(trained, compile=False)  # a compiled module has no layers to replace
    data = cfg.data or trained.data
    spec = load_spec(data, trained.shape)
    task, tables = recipe.build(trained, spec, 1, torch.device("cpu"))
    configs = {config.name: config for config in physical_configs(tables)}
    types = dict.fromkeys(configs, cfg.tables) | cfg.table_types
    check_types(tables, types)
    tables.to_empty(device="cpu")
    progress = load_unsharded(task, checkpoint_path(f"{cfg.run}/checkpoints", cfg.step))
    model = task.model.eval()
    streams = recipe.open_streams(data, spec, Ranks(cfg.batch_size, 0, 1), trained.rows, 1, trained.seed, 1)
    if cfg.split not in streams:
        raise ValueError(f"split must be one of {data}: got {cfg.split!r}; name one of {sorted(streams)}")
    real = [(b.dense_features, b.sparse_features) for b in islice(streams["train"].batches(), cfg.calibration_batches)]
    words = vocabularies(data, spec)
    before, labels = predict(Scorer(model, spec), streams[cfg.split])
    bytes_before = {"tables": sum(each.nbytes for each in table_weights(tables).values()), "mlps": mlp_bytes(model)}
    if cfg.budget_mib:
        errors = logit_errors(lambda: torch.cat([model(*batch) for batch in real]), tables)
        types = choose_types(tables, errors, int(cfg.budget_mib * 2**20))
        for name, kind in types.items():
            print(f"{name}: {kind}, which changes logits by {errors[name][kind] ** 0.5:.1e} (RMS)", file=sys.stderr)
    model = serve_tables(model, tables, types, [feature.name for feature in spec.sparse])
    if cfg.mlps != "fp32":
        model = quantize_mlps(model, cfg.mlps, real, bits=cfg.bits, outliers=cfg.outliers)
    served = script(Scorer(model, spec))
    after, _ = predict(served, streams[cfg.split])
    bytes_after = {"tables": sum(table_bytes(configs[n], kind) for n, kind in types.items()), "mlps": mlp_bytes(model)}
    found: Change = {
        "split": cfg.split,
        "before": ranking_metrics(before, labels),
        "after": ranking_metrics(after, labels),
        "largest_change": float((after.sigmoid() - before.sigmoid()).abs().max()),
        "bytes_before": bytes_before,
        "bytes_after": bytes_after,
    }
    report(found, types)
    lost = found["before"]["auc"] - found["after"]["auc"]
    if lost > cfg.max_auc_loss:
        raise ValueError(
            f"AUC must not fall by more than {cfg.max_auc_loss:g}: got {lost:.2g} less, and nothing was written; give "
            "tables more bits, keep outliers, or raise --max-auc-loss"
        )
    told = {name: getattr(cfg, name) for name in ("recipe", "run", "mlps", "bits", "outliers")}
    told |= {"steps": progress.step, "tables": types}
    output = cfg.output or f"{cfg.run}/package"
    write_package(output, served, spec, vocabularies=words, model_facts=told, metrics=found)
    final = prefixed(f"{cfg.split}/", found["after"]) | prefixed(f"before/{cfg.split}/", found["before"])
    final |= {"largest_change": found["largest_change"], "steps": progress.step}
    final |= prefixed("bytes/", bytes_after) | prefixed("before/bytes/", bytes_before)
    print(json.dumps(final), flush=True)
    return final


def report(found: Change, types: dict[str, TableType]) -> None:
    """What quantising changed, a line each, on standard error."""
    print(f"tables by type: {dict(Counter(types.values()))}", file=sys.stderr)
    for part, before in found["bytes_before"].items():
        after = found["bytes_after"][part]
        print(f"{part}: {before:,} bytes before, {after:,} after, {after / before:.1%}", file=sys.stderr)
    for name in ("auc", "logloss", "ne", "calibration"):
        was, now = found["before"][name], found["after"][name]
        print(f"{name}: {was:.5f} before, {now:.5f} after, {now - was:+.1e}", file=sys.stderr)
    print(f"largest change of a probability: {found['largest_change']:.1e}", file=sys.stderr)


@torch.inference_mode()
def predict(model: torch.nn.Module, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels (N,) of every row of a split."""
    scores, labels = [], []
    for batch in stream.batches():
        ids = batch.sparse_features
        found, _ = model(batch.dense_features, ids.values(), ids.lengths())
        scores.append(found[: batch.num_rows])
        labels.append(batch.labels[: batch.num_rows])
    return torch.logit(torch.cat(scores).double(), 1e-12), torch.cat(labels)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
