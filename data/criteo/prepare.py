"""Prepare click logs for training: Criteo Kaggle, Criteo 1TB, or any CSV / Parquet described by a DatasetSpec.

    python data/criteo/prepare.py kaggle --input train.txt --output prepared/criteo-kaggle
    python data/criteo/prepare.py 1tb --input day_*.gz --output prepared/criteo-1tb
    python data/criteo/prepare.py table --spec spec.json --input log.csv --val_share 0.1 --output prepared/log

Malformed rows go to quarantine.tsv in the output folder, and report.json counts them. Files may be gzip. Run the same
command again to resume after an interruption. Under torchrun or `torchx run dist.ddp`, the ranks share the work.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from typing import Literal

import tyro
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.criteo import KAGGLE_ROWS, MAX_IND_RANGE, TERABYTE_ROWS, criteo_raw_spec
from dlrm_torchrec.datasets.prepared.writer import ROW_GROUP_ROWS
from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.raw_criteo import CriteoReader
from dlrm_torchrec.preparation.readers.raw_csv import CsvReader
from dlrm_torchrec.preparation.readers.raw_parquet import ParquetReader
from dlrm_torchrec.preparation.readers.rows import Reader
from dlrm_torchrec.preparation.splits import Assignment, ByHash, LastPart, Whole
from dlrm_torchrec.schema import DatasetSpec

DAYS_OF_KAGGLE = 7


@dataclass(frozen=True, kw_only=True)
class Config:
    kind: tyro.conf.Positional[Literal["kaggle", "1tb", "table"]]  # Format of the input.
    input: tuple[str, ...]  # Labelled files: train.txt, day_0 to day_23, or tables (.parquet or delimited text).
    output: str  # Folder to prepare, new or empty.
    val: tuple[str, ...] = ()  # Files of split 'val'; with --val or --test, all of --input is training data.
    test: tuple[str, ...] = ()  # Files of split 'test'.
    unlabelled: tuple[str, ...] = ()  # Files without labels, such as test.txt: split 'unlabelled', label 0.
    val_share: float = 0.0  # Share of random rows of --input for 'val'; 0 takes Criteo's last day instead.
    test_share: float = 0.0  # Share of random rows of --input for 'test'.
    encoding: Literal["vocab", "hash"] = "vocab"  # For kaggle and 1tb: number the values, or hash them.
    min_count: int = 1  # For vocab of kaggle and 1tb: a value seen less often in training is unseen.
    max_ind_range: int = 0  # Most ids per feature of kaggle and 1tb; 0 means 40,000,000 for 1tb, no limit for kaggle.
    spec: str = ""  # For table: JSON file of a DatasetSpec.
    separator: str = ","  # For table: the character between fields of text.
    negative_label: str | None = None  # For table: label text for 0; by default any but positive_label.
    max_bad_share: float = 0.01  # Largest share of malformed rows; more end in an error.
    row_group_rows: int = ROW_GROUP_ROWS  # Rows that a rank reads at a time.
    shuffle_window: int = 0  # Shuffle the training rows within windows of so many rows; 0 keeps their order.
    seed: int = 0  # Seed of the shuffling.
    workers: int | None = None  # Number of processes; by default one per core, as far as the memory allows.
    memory_gib: float = 2.0  # Memory of all processes of a rank together, for any size of input.
    rank_timeout_s: float = 300.0  # With several ranks: a rank that is silent for so long counts as dead.
    overwrite: bool = False  # Replace a folder that is already prepared, or half prepared by another command.


def columns(cfg: Config) -> DatasetSpec:
    """The spec to prepare; vocabularies are still to be counted."""
    if cfg.kind == "table":
        if not cfg.spec:
            raise ValueError(
                "--spec must name the JSON file of a DatasetSpec: got none; write one (README.md shows how)"
            )
        with g_pathmgr.open(cfg.spec, "r") as file:
            try:
                return DatasetSpec.from_json(json.load(file))
            except ValueError as error:
                raise ValueError(f"--spec {cfg.spec} must hold a DatasetSpec: got {error}") from error
    rows = KAGGLE_ROWS if cfg.kind == "kaggle" else TERABYTE_ROWS
    name, folded = f"criteo-{cfg.kind}", ind_range(cfg)
    return criteo_raw_spec(name, rows, cfg.encoding, min_count=cfg.min_count, max_ind_range=folded)


def ind_range(cfg: Config) -> int:
    return cfg.max_ind_range or (MAX_IND_RANGE if cfg.kind == "1tb" else 1 << 32)


def reader(cfg: Config, spec: DatasetSpec, path: str, *, labelled: bool) -> Reader:
    if cfg.kind != "table":
        folded = ind_range(cfg) if cfg.encoding == "vocab" else 1 << 32
        return CriteoReader(labelled=labelled, max_ind_range=folded)
    wanted = Columns(spec=spec, negative_label=cfg.negative_label, labelled=labelled)
    if path.endswith(".parquet"):
        return ParquetReader(columns=wanted)
    return CsvReader(columns=wanted, separator=cfg.separator)


def assignments(cfg: Config) -> list[tuple[str, Assignment | LastPart]]:
    """Each labelled file of --input in time order, and the split of its rows; the last day is 'val' and 'test'."""
    paths = sorted(cfg.input, key=natural)
    shares = tuple((name, share) for name, share in (("val", cfg.val_share), ("test", cfg.test_share)) if share)
    if shares:
        return [(path, ByHash("train", shares)) for path in paths]
    if cfg.val or cfg.test or cfg.kind == "table":
        return [(path, Whole("train")) for path in paths]
    if cfg.kind == "1tb" and len(paths) == 1:
        raise ValueError(f"--input must hold at least two days: got {paths[0]}; add days, or set --val or --val_share")
    if cfg.kind == "kaggle" and len(paths) > 1:
        raise ValueError(f"--input must be one file for kaggle: got {paths}; name train.txt only, or use 1tb for days")
    last_day = LastPart(DAYS_OF_KAGGLE if cfg.kind == "kaggle" else 1)
    return [*((path, Whole("train")) for path in paths[:-1]), (paths[-1], last_day)]


def natural(path: str) -> list[tuple[int, str]]:
    """A key that sorts day_2 before day_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def main(cfg: Config) -> None:
    spec = columns(cfg)
    files: list[tuple[str, Assignment | LastPart, bool]] = [(path, place, True) for path, place in assignments(cfg)]
    files += [(path, Whole("val"), True) for path in sorted(cfg.val, key=natural)]
    files += [(path, Whole("test"), True) for path in sorted(cfg.test, key=natural)]
    files += [(path, Whole("unlabelled"), False) for path in sorted(cfg.unlabelled, key=natural)]
    sources = [
        Source(path=path, reader=reader(cfg, spec, path, labelled=labelled), assignment=place)
        for path, place, labelled in files
    ]
    manifest = prepare(
        spec,
        sources,
        cfg.output,
        max_bad_share=cfg.max_bad_share,
        overwrite=cfg.overwrite,
        row_group_rows=cfg.row_group_rows,
        shuffle_window_rows=cfg.shuffle_window,
        seed=cfg.seed,
        workers=cfg.workers,
        memory_bytes=int(cfg.memory_gib * 2**30),
        rank_timeout_s=cfg.rank_timeout_s,
    )
    if os.environ.get("RANK", "0") != "0":
        return
    rows = ", ".join(f"{split.rows:,} {name}" for name, split in manifest.splits.items())
    print(f"{cfg.output}: {rows} rows; {manifest.report['rows_quarantined']:,} malformed rows in quarantine.tsv")
    for source in manifest.report["sources"]:
        if source["damage"]:
            print(
                f"warning: {source['path']}: {source['damage']}; the {source['rows_written']:,} rows before were kept"
            )


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again to resume")
