"""Prepared files against the trainer that reads them: a GPU must not wait for its batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dlrm_torchrec.datasets.open import open_streams
from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest, Split
from dlrm_torchrec.datasets.prepared.writer import ROW_GROUP_ROWS, SplitWriter
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.preparation.passes.encode import prepared_schema
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.world import World, join_world

from ..proof import Proof
from ..shapes import kaggle, pinned, random_batches, repeated
from ..training import Trainer


def prepare(folder: str, spec: DatasetSpec, rows: int) -> None:
    """Writes a prepared folder of random rows."""
    random, schema, splits = np.random.default_rng(0), prepared_schema(spec), {}
    for split, count in (("train", rows), ("val", min(rows, ROW_GROUP_ROWS))):
        with SplitWriter(folder, split, unit=0, schema=schema, row_group_rows=ROW_GROUP_ROWS) as writer:
            for first in range(0, count, ROW_GROUP_ROWS):
                block = min(ROW_GROUP_ROWS, count - first)
                columns: list[Any] = [random.integers(0, 2, block).astype(np.float32)]
                columns += [random.random(block, np.float32) for _ in spec.dense]
                columns += [random.integers(0, each.rows, block, np.int32) for each in spec.sparse]
                writer.write(pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema))
        files = (DataFile(path=file.path, rows=count, sha256=file.sha256) for file, count in writer.files)
        splits[split] = Split(files=tuple(files))
    Manifest(spec=spec, splits=splits).save(folder)


def prove(proof: Proof) -> None:
    _, cfg = kaggle(toy=proof.toy, batch_size=16_384)
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder, cfg.shape, 4 * cfg.batch_size if proof.toy else 2_000_000)
        cfg = replace(cfg, data=folder, epochs=1)
        with proof.guarded("reader over trainer", "speed"), join_world(seed=0) as world:
            compare(proof, cfg, world)
        name = "recipe from files, with its evaluations and checkpoint"
        with proof.guarded(name):
            recipe = load_training_recipe("train_dlrm")
            metrics = recipe.main("files", replace(cfg, run_dir=str(Path(folder, "runs")), eval_every=0))
            proof.correct(name, float(not 0 < metrics["val/logloss"] < 10), unit="losses that are none")
            proof.measured("recipe from files", metrics["samples_per_s"], unit="samples/s")


def compare(proof: Proof, cfg: Any, world: World) -> None:
    """The rates of the reader alone, of steps with batches at hand, and of steps with batches from files."""
    recipe = load_training_recipe("train_dlrm")
    ranks = Ranks(cfg.batch_size, 0, 1)
    streams = open_streams(cfg.data, cfg.shape, ranks, rows=0, epochs=2, seed=0, lanes=1)
    trainer = Trainer(recipe, cfg, world, speed=("auto",))
    ready = pinned(random_batches(cfg.shape, cfg.batch_size, count=4, device=proof.device))
    reader, steps = streams["train"].batches(), streams["train"].num_steps // 2
    pipeline = train_pipeline(trainer.model, trainer.optimizer, world)

    def rate(step: Callable[[], object]) -> float:
        begin = proof.now()
        for _ in range(steps - 1):  # a pipeline reads one ahead
            step()
        return (steps - 1) * cfg.batch_size / (proof.now() - begin)

    at_hand = repeated(ready, 2 * steps)
    pipeline.progress(at_hand)
    trained = rate(lambda: pipeline.progress(at_hand))
    read = rate(lambda: next(reader))
    fed = rate(lambda: pipeline.progress(reader))
    proof.measured("reader alone", read, unit="rows/s")
    proof.measured("reader over trainer", read / trained, unit="x", at_least=1.0, note=f"{trained:,.0f} rows/s trained")
    proof.measured("steps fed from files over steps with batches at hand", fed / trained, unit="x", at_least=0.95)
