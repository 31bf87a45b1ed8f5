"""Turn a checkpoint into a quantised package for serving: tables of few bits, int8 MLPs, and the vocabularies.

    python recipes/quantize_dlrm.py train_dlrm runs/train_dlrm/demo
    python recipes/quantize_dlrm.py train_dlrm runs/train_dlrm/demo --tables int4 --table-types t_id_0 int8
    python recipes/quantize_dlrm.py my_copy.py runs/my_copy/census --budget-mib 0.05 --bits 4 --outliers 0.02
    python recipes/quantize_dlrm.py train_hstu_next_item runs/train_hstu_next_item/demo

It takes any run over rows or histories with labels, 0 or 1 or numbers, or that ranks items, with compositional tables
or without. It refuses data whose ids or scales mean something else than in training. It prints bytes, metrics and the
largest change of a prediction on the validation rows, and writes them into the package; if AUC, or NDCG@10 of ranked
items, falls by more than ``--max-auc-loss`` plus twice the standard error of its fall, it writes nothing. Next:
dlrm-recipes serve runs/train_dlrm/demo/package.
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
from dlrm_torchrec.recipe import load_judged_recipe, open_splits, ranks_items, read_config


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: Positional[str]  # The recipe that trained the run: its name here, or the path of your copy.
    run: Positional[str]  # The run's folder, with config.json and checkpoints.
    step: int | Literal["best"] | None = None  # Step of the checkpoint, or best by validation; None means the newest.
    data: str = ""  # Another prepared folder with the same features; empty means the run's own data.
    split: str = "val"  # The split whose rows the metrics are measured on.
    batch_size: int = 0  # Rows, or samples of histories, at a time; 0 means 8192, or as many as in training.
    tables: TableType = "int8"  # Number format of the tables' rows.
    table_types: dict[str, TableType] = field(default_factory=dict)  # Formats of single tables: name and format each.
    budget_mib: float = 0  # Maximum size of all tables in MiB, for which their formats are chosen; 0 means no choice.
    mlps: MlpType = "static"  # Format of the MLPs: static int8 has ranges measured before, dynamic int8 per batch.
    bits: int = 7  # Bits of the MLPs' weights.
    outliers: float = 0  # Share of the MLPs' weights, the largest ones, that stay float in a sparse matrix.
    calibration_batches: int = 8  # Number of training batches that a budget and static ranges are measured on.
    max_auc_loss: float = 1e-3  # Maximum fall of AUC or NDCG@10, or share of RMSE's rise, plus two standard errors.
    output: str = ""  # Folder of the package; empty means <run>/package.
    debug: bool = False  # Show the call stack of every error.


if __name__ == "__main__":
    COMMAND_LINE = read_options(Config, __doc__)  # before torch is imported, so that --help answers at once

from collections import Counter
from itertools import islice

from dlrm_torchrec.datasets.open import load_spec, vocabularies
from dlrm_torchrec.datasets.sequences.next_items import next_item_spec
from dlrm_torchrec.datasets.spec_checks import check_same_meaning
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.inference.config import QuantizationConfig
from dlrm_torchrec.inference.package import write_package
from dlrm_torchrec.inference.quality.report import check_quality
from dlrm_torchrec.inference.quantization import Quantized, form_of, load_trained, quantize
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.terminal.closing import say_closing
from dlrm_torchrec.terminal.failure import run
from dlrm_torchrec.train.checkpoints.folder import checkpoint_path
from dlrm_torchrec.train.checkpoints.marker import read_progress
from dlrm_torchrec.train.log import prefixed


def main(cfg: Config) -> dict[str, float]:
    recipe = load_judged_recipe(cfg.recipe)
    trained = read_config(recipe, cfg.run)
    data = cfg.data or trained.data
    spec = load_spec(data, trained.shape)
    spec = next_item_spec(spec) if spec.history and ranks_items(recipe) else spec
    checkpoint = checkpoint_path(f"{cfg.run}/checkpoints", cfg.step)
    check_same_meaning(DatasetSpec.from_json(read_progress(checkpoint).identity["spec"]), spec, data)

    # the trained model, unsharded, and rows to measure on: some of training, and a whole split
    trained_model = load_trained(recipe.build, trained, spec, checkpoint)
    batch_size = cfg.batch_size or (8192 if spec.history is None else trained.batch_size)
    streams = open_splits(recipe, trained, Ranks(batch_size, 0, 1), data=data, spec=spec)
    if cfg.split not in streams:
        raise ValueError(f"split must be one of {data}: got {cfg.split!r}; name one of {sorted(streams)}")
    rows = streams[cfg.split]
    form = form_of(rows, trained.columns if ranks_items(recipe) and not spec.history else None)
    words = vocabularies(data, form.spec)

    # quantise tables and MLPs, and write the package, unless the model has become too much worse
    how = QuantizationConfig(
        tables=cfg.tables,
        table_types=cfg.table_types,
        budget_mib=cfg.budget_mib,
        mlps=cfg.mlps,
        bits=cfg.bits,
        outliers=cfg.outliers,
        max_auc_loss=cfg.max_auc_loss,
    )
    calibration = islice(streams["train"].batches(), cfg.calibration_batches)
    quantized = quantize(trained_model, how, rows, split=cfg.split, calibration=calibration, form=form)
    describe(quantized)
    report, steps = quantized.report, trained_model.progress.step
    check_quality(report, how.max_auc_loss, option="--max-auc-loss")
    facts = {"recipe": cfg.recipe, "run": cfg.run, "steps": steps, **quantized.facts(how)}
    output = cfg.output or f"{cfg.run}/package"
    samples = None if spec.history is None else asdict(trained.samples)
    write_package(
        output, quantized.program, form.spec, vocabularies=words, model_facts=facts, metrics=quantized.metrics,
        samples=samples, ranks=form.ranks,
    )  # fmt: skip
    say_closing(wrote=[output], next=[shlex.join(["dlrm-recipes", "serve", output])])
    final = prefixed(f"{cfg.split}/", report.after) | prefixed(f"before/{cfg.split}/", report.before)
    final |= {"largest_change": report.largest_change, "steps": steps}
    final |= prefixed("bytes/", report.bytes_after) | prefixed("before/bytes/", report.bytes_before)
    print(json.dumps(final), flush=True)
    return final


def describe(quantized: Quantized) -> None:
    """Print what quantising changed, a line each, on standard error."""
    report, types = quantized.report, quantized.types
    for name, errors in quantized.errors.items():
        kind = types[name]
        print(f"{name}: {kind}, which changes logits by {errors[kind] ** 0.5:.1e} (RMS)", file=sys.stderr)
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


if __name__ == "__main__":
    run(main, COMMAND_LINE)
