"""Prepare click logs for training: Criteo Kaggle, Criteo 1TB, or any table that a DatasetSpec describes.

    python data/criteo/prepare.py kaggle --input train.txt --output prepared/criteo-kaggle
    python data/criteo/prepare.py 1tb --input day_*.gz --output prepared/criteo-1tb
    python data/criteo/prepare.py x1 --input train.csv --val valid.csv --test test.csv --output prepared/criteo-x1
    python data/criteo/prepare.py x4 --input train.txt --output prepared/criteo-x4
    python data/criteo/prepare.py table --spec spec.json --input log.csv --val_share 0.1 --output prepared/log

x1 and x4 are the data sets of BARS: x1 from its files, x4 from Criteo Kaggle's file, or from those of BARS like x1.
A table is text with any separator, libsvm lines or Parquet; a name may be a file, a folder or a pattern. Files may be
compressed. Malformed rows go to quarantine.tsv in the output folder, and report.json counts them. Run the same command
again to resume after an interruption. Under torchrun or `torchx run dist.ddp`, the ranks share the work.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from typing import Literal

import tyro
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.criteo import (
    BARS_COLUMNS,
    KAGGLE_ROWS,
    MAX_IND_RANGE,
    TERABYTE_ROWS,
    criteo_raw_spec,
    criteo_x1_spec,
    criteo_x4_spec,
)
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.prepared.writer import ROW_GROUP_ROWS
from dlrm_torchrec.preparation.prepare import Source, Window, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.labels import with_labels
from dlrm_torchrec.preparation.readers.paths import files_of, natural
from dlrm_torchrec.preparation.readers.raw_criteo import CriteoReader
from dlrm_torchrec.preparation.readers.rows import Reader
from dlrm_torchrec.preparation.readers.tables import Form, table_reader
from dlrm_torchrec.preparation.readers.text.reader import TextReader
from dlrm_torchrec.preparation.splits import Assignment, ByHash, ByTime, LastPart, Whole
from dlrm_torchrec.preparation.stratified import Stratified, csv_digest
from dlrm_torchrec.schema import DatasetSpec

DAYS_OF_KAGGLE = 7
TABLE_VAL_SHARE = 0.1
BARS_SPECS = {"x1": criteo_x1_spec, "x4": criteo_x4_spec}
X4_TEST_MD5 = "cfc37da0d75c4d2d8778e76997df2976"  # of test.csv, as BARS published it


@dataclass(frozen=True, kw_only=True)
class Config:
    kind: tyro.conf.Positional[Literal["kaggle", "1tb", "x1", "x4", "table"]]  # Format of the input.
    input: tuple[str, ...]  # Labelled files, folders or patterns: train.txt, day_0 to day_23, or tables.
    output: str  # Folder to prepare, new or empty.
    val: tuple[str, ...] = ()  # Files of split 'val'; with --val or --test, all of --input is training data.
    test: tuple[str, ...] = ()  # Files of split 'test'.
    unlabelled: tuple[str, ...] = ()  # Files without labels, such as test.txt: split 'unlabelled', label 0.
    val_share: float | None = None  # Share of rows of --input for 'val'; default: Criteo's last day, 0.1 of a table.
    test_share: float = 0.0  # Share of rows of --input for 'test'.
    time: str = ""  # For table: column of times; the shares are then the latest rows, not random ones.
    keep_time: str = ""  # For table: column of times that the files keep, for training on windows of time.
    group: str = ""  # For table: column such as the user; rows with the same value are then in the same split.
    encoding: Literal["vocab", "hash", "managed"] = "vocab"  # For kaggle and 1tb: number the values, or hash them.
    min_count: int = 1  # For vocab of kaggle and 1tb: a value seen less often in training is unseen.
    max_ind_range: int = 0  # Most ids per feature of kaggle and 1tb; 0 means 40,000,000 for 1tb, no limit for kaggle.
    spec: str = ""  # For table: JSON file of a DatasetSpec.
    vocabularies: str = ""  # For table: prepared folder whose vocabularies and scales (and spec) these rows get.
    after: str = ""  # Prepared folder of the day before: known values keep their ids, new ones get free ids.
    keep_counts: bool = False  # For a first day: keep the counts that --after of the next day needs.
    headroom: float = 0.0  # For a first day: free ids of each vocabulary, a share of its values; 0: tables grow.
    max_age: int = 0  # For a first day: a value that was in none of so many last days is forgotten; 0: never.
    separator: str = ""  # For table: what is between fields of text, such as :: or \t; by default the file tells.
    columns: tuple[str, ...] = ()  # For table: names of the columns of text files without a header line.
    labels: str = ""  # For table: file with the labels of --input, one row each in the same order.
    label_key: str = ""  # For table: column of both files that says which row a label belongs to, instead of the order.
    negative_label: str | None = None  # For table: label text for 0; by default any but positive_label.
    max_bad_share: float = 0.01  # Largest share of malformed rows; more end in an error.
    row_group_rows: int = ROW_GROUP_ROWS  # Rows that a rank reads at a time.
    shuffle_window: int = 0  # Shuffle the training rows within windows of so many rows; 0 keeps their order.
    seed: int = 0  # Seed of the shuffling.
    workers: int | None = None  # Number of processes; by default one per core, as far as the memory allows.
    memory_gib: float = 2.0  # Memory of all processes of a rank together, for any size of input.
    rank_timeout_s: float = 300.0  # With several ranks: a rank that is silent for so long counts as dead.
    overwrite: bool = False  # Replace a folder that is already prepared, or half prepared by another command.


def spec_of(cfg: Config) -> DatasetSpec:
    """The spec to prepare; vocabularies are still to be counted."""
    if cfg.kind in BARS_SPECS:
        return BARS_SPECS[cfg.kind](raw=True)
    if cfg.kind == "table":
        if (cfg.vocabularies or cfg.after) and not cfg.spec:
            return Manifest.load(cfg.vocabularies or cfg.after).stored_spec
        if not cfg.spec:
            raise ValueError(
                "--spec must name the JSON file of a DatasetSpec: got none; let propose write one (README.md shows how)"
            )
        with g_pathmgr.open(cfg.spec, "rb") as file:
            try:
                return DatasetSpec.read(file.read())
            except ValueError as error:
                raise ValueError(f"--spec {cfg.spec} must hold a DatasetSpec: got {error}") from error
    rows = KAGGLE_ROWS if cfg.kind == "kaggle" else TERABYTE_ROWS
    name, folded = f"criteo-{cfg.kind}", ind_range(cfg)
    return criteo_raw_spec(name, rows, cfg.encoding, min_count=cfg.min_count, max_ind_range=folded)


def ind_range(cfg: Config) -> int:
    return cfg.max_ind_range or (MAX_IND_RANGE if cfg.kind == "1tb" else 1 << 32)


def reader(cfg: Config, spec: DatasetSpec, path: str, *, labelled: bool) -> Reader:
    if cfg.kind in ("kaggle", "1tb"):
        folded = ind_range(cfg) if cfg.encoding == "vocab" else 1 << 32
        return CriteoReader(labelled=labelled, max_ind_range=folded)
    also = tuple(dict.fromkeys(each for each in (cfg.time or cfg.group, cfg.keep_time) if each)) if labelled else ()
    wanted = Columns(spec=spec, negative_label=cfg.negative_label, labelled=labelled, also=also)
    form = Form(separator=cfg.separator, names=cfg.columns)
    if is_raw_x4(cfg):
        form = Form(separator="\t", names=(spec.label, *BARS_COLUMNS))
    if cfg.labels and labelled:
        wanted = with_labels(wanted, cfg.labels, path, form, key=cfg.label_key)
    return table_reader(path, wanted, form)


def is_raw_x4(cfg: Config) -> bool:
    """Whether the rows of x4 come from Criteo's own file, which is still to be split."""
    return cfg.kind == "x4" and not cfg.val


def assignments(cfg: Config, spec: DatasetSpec) -> list[tuple[str, Assignment | LastPart]]:
    """Each labelled file of --input in time order, and the split of its rows; the last day is 'val' and 'test'."""
    paths = [path for each in sorted(cfg.input, key=natural) for path in files_of(each)]
    if cfg.keep_time and (cfg.kind != "table" or cfg.unlabelled):
        raise ValueError(
            f"--keep_time must go with table, and with labelled files only: got {cfg.kind} and --unlabelled "
            f"{cfg.unlabelled}; leave it out"
        )
    shares = tuple((name, share) for name, share in (("val", cfg.val_share), ("test", cfg.test_share)) if share)
    if (cfg.time or cfg.group) and (cfg.kind != "table" or not shares or (cfg.time and cfg.group)):
        raise ValueError(
            "--time or --group, one of them, must go with table and a share of rows: got "
            f"{cfg.kind}, {dict(shares)}, --time {cfg.time!r} and --group {cfg.group!r}; correct the options"
        )
    if cfg.kind in BARS_SPECS and (shares or bool(cfg.val) != bool(cfg.test) or (cfg.kind == "x1" and not cfg.val)):
        raise ValueError(
            f"--val and --test must name the published files of {cfg.kind}, whose split is part of it: got "
            f"{cfg.val} and {cfg.test}; name both, or for x4 give Criteo's train.txt as --input alone"
        )
    if is_raw_x4(cfg) and len(paths) > 1:
        raise ValueError(f"--input must be one file for x4: got {paths}; name train.txt only, or add --val and --test")
    if is_raw_x4(cfg):
        return [(paths[0], Stratified(paths[0]))]
    form = Columns(spec=spec).form
    if cfg.time:
        return [(path, ByTime("train", shares, cfg.time, form)) for path in paths]
    if shares:
        place = ByHash("train", shares, cfg.group, form) if cfg.group else ByHash("train", shares)
        return [(path, place) for path in paths]
    if cfg.val or cfg.test or cfg.kind == "table":
        return [(path, Whole("train")) for path in paths]
    if cfg.kind == "1tb" and len(paths) == 1:
        raise ValueError(f"--input must hold at least two days: got {paths[0]}; add days, or set --val or --val_share")
    if cfg.kind == "kaggle" and len(paths) > 1:
        raise ValueError(f"--input must be one file for kaggle: got {paths}; name train.txt only, or use 1tb for days")
    last_day = LastPart(DAYS_OF_KAGGLE if cfg.kind == "kaggle" else 1)
    return [*((path, Whole("train")) for path in paths[:-1]), (paths[-1], last_day)]


def sources_of(cfg: Config, spec: DatasetSpec) -> list[Source]:
    files: list[tuple[str, Assignment | LastPart, bool]] = [
        (path, place, True) for path, place in assignments(cfg, spec)
    ]
    for names, split in ((cfg.val, "val"), (cfg.test, "test"), (cfg.unlabelled, "unlabelled")):
        paths = [path for each in sorted(names, key=natural) for path in files_of(each)]
        files += [(path, Whole(split), split != "unlabelled") for path in paths]
    return [
        Source(path=path, reader=reader(cfg, spec, path, labelled=labelled), assignment=place)
        for path, place, labelled in files
    ]


def window_of(cfg: Config) -> Window | None:
    """The place of the folder in a chain of days; None if it is in none."""
    if cfg.after and cfg.vocabularies:
        raise ValueError(
            f"--after and --vocabularies must not go together: got {cfg.after} and {cfg.vocabularies}; --after "
            "continues the vocabularies, --vocabularies leaves them as they are"
        )
    if not cfg.after and not cfg.keep_counts:
        if cfg.headroom or cfg.max_age:
            raise ValueError(
                f"--headroom and --max_age must go with --keep_counts: got {cfg.headroom} and {cfg.max_age}; add it"
            )
        return None
    return Window(after=cfg.after, headroom=cfg.headroom, max_age=cfg.max_age)


def main(cfg: Config) -> None:
    told = os.environ.get("RANK", "0") == "0"
    if cfg.kind == "table" and cfg.val_share is None and not cfg.val:
        cfg = replace(cfg, val_share=TABLE_VAL_SHARE)
        if told:
            how = f"latest by {cfg.time}" if cfg.time else "drawn at random"
            print(f"val: {TABLE_VAL_SHARE:.0%} of the rows, {how}; --val or --val_share 0 changes this")
    spec = spec_of(cfg)
    sources = sources_of(cfg, spec)
    if told and cfg.kind == "table":
        for form in dict.fromkeys(
            str(source.reader.layout) for source in sources if isinstance(source.reader, TextReader)
        ):
            print(form)
    manifest = prepare(
        spec,
        sources,
        cfg.output,
        earlier=cfg.vocabularies,
        window=window_of(cfg),
        max_bad_share=cfg.max_bad_share,
        overwrite=cfg.overwrite,
        row_group_rows=cfg.row_group_rows,
        shuffle_window_rows=cfg.shuffle_window,
        seed=cfg.seed,
        time=cfg.keep_time,
        workers=cfg.workers,
        memory_bytes=int(cfg.memory_gib * 2**30),
        rank_timeout_s=cfg.rank_timeout_s,
    )
    if not told:
        return
    rows = ", ".join(f"{split.rows:,} {name}" for name, split in manifest.splits.items())
    print(f"{cfg.output}: {rows} rows; {manifest.report['rows_quarantined']:,} malformed rows in quarantine.tsv")
    if is_raw_x4(cfg):
        found = csv_digest(sources[0].path, 0, (spec.label, *BARS_COLUMNS))
        known = "that of" if found == X4_TEST_MD5 else "not that of"
        print(f"test: the MD5 of its rows as a CSV file is {found}, {known} BARS' test.csv")
    for line in manifest.lineage.lines() if manifest.lineage else ():
        print(line)
    for name, counts in manifest.report["splits"].items():
        if cfg.vocabularies and counts["unseen"]:
            print(f"{name}: values that the vocabularies do not know: {counts['unseen']}")
    for name, split in manifest.splits.items():
        if not split.rows:
            print(f"warning: split {name!r} has no rows; a larger share or other rows would give it some")
    first = {source.sha256: source.path for source in reversed(manifest.sources)}
    for source in manifest.sources:
        if first[source.sha256] != source.path:
            print(f"warning: {source.path} is a copy of {first[source.sha256]}; its rows are there twice")
    for read in manifest.report["sources"]:
        if read["damage"]:
            print(f"warning: {read['path']}: {read['damage']}; the {read['rows_written']:,} rows before were kept")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again to resume")
