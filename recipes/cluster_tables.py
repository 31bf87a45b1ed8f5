r"""Give similar ids the same rows: cluster the vectors of a trained run, or take classes such as brand from a file.

    python recipes/cluster_tables.py runs/train_dlrm/demo --output clusters --levels 2 --classes 64
    python recipes/train_dlrm.py demo --run-dir runs/clustered --tables.kind clusters --tables.assignments clusters \
        --tables.pretrained clusters
    python recipes/cluster_tables.py prepared/shop --file brands.csv --tables t_item --output brands

The first command clusters each table that has more rows than its clusters would have, and writes the folder that the
second one trains with: the class of every id, and the rows, moments and other parameters to begin with. An id is the
sum of its rows, one for each level. With --hashed, each id gets one more row by a hash, which begins at 0; run the two
commands in turn, on the newest run and into new folders, and this is CCE: ids that share a cluster drift apart and
are clustered again. The third command takes a table of values and classes; an id without a class gets class 0.
Expected: the classes, collisions and variance explained of each table, and all that as JSON, in seconds.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any, Literal

from tyro.conf import Positional

from dlrm_torchrec.command_line import read_options
from dlrm_torchrec.schema import DatasetSpec, Table


@dataclass(frozen=True, kw_only=True)
class Config:
    source: Positional[str]  # The folder of a run with its checkpoints; with --file, a prepared folder.
    output: str  # Folder for the files of tables; files of the same tables there are replaced.
    levels: int = 1  # Levels of clusters; each clusters what the levels before leave.
    classes: int = 256  # Clusters of each level.
    max_rows: int = 0  # Maximum rows of a table, all levels together, which overrides 'classes'; 0 means no limit.
    hashed: bool = False  # Add as many rows as a level has, found by a hash, so that ids of a cluster can differ.
    tables: tuple[str, ...] = ()  # Tables to cluster; empty means all that have more rows than their clusters.
    step: int | Literal["best"] | None = None  # Step of the checkpoint, or best by validation; None means the newest.
    data: str = ""  # Prepared folder whose training rows tell how frequent ids are; empty means that of the run.
    file: str = ""  # CSV or Parquet file with a column of values and columns of their classes; empty means none.
    seed: int = 0  # Seed of the first centroids.
    debug: bool = False  # Show the call stack of every error.


if __name__ == "__main__":
    COMMAND_LINE = read_options(Config, __doc__)  # before torch is imported, so that --help answers at once

import torch
from iopath.common.file_io import g_pathmgr
from safetensors.torch import save_file

from dlrm_torchrec.datasets.open import SYNTHETIC, vocabularies
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.profile import lookups_of_ids
from dlrm_torchrec.embeddings.assignments import Assignment, read_assignment
from dlrm_torchrec.embeddings.clustering.clustered import Clustering, cluster_table
from dlrm_torchrec.embeddings.clustering.levels import collisions
from dlrm_torchrec.embeddings.clustering.trained import moments_of, stored_as, vectors_of
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.pretrained import DENSE
from dlrm_torchrec.inference.assigned_classes import read_classes
from dlrm_torchrec.recipe import restore
from dlrm_torchrec.terminal.closing import say_closing
from dlrm_torchrec.terminal.failure import run
from dlrm_torchrec.train.checkpoints.folder import checkpoint_path
from dlrm_torchrec.train.checkpoints.marker import read_progress
from dlrm_torchrec.train.checkpoints.tables import read_dense, read_moments, read_table, saved_tables

Reports = dict[str, dict[str, Any]]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def clustering(cfg: Config, tables: TablesConfig, table: Table) -> Clustering:
    """The clusters of a table; a table that was clustered before gets another hash."""
    parts = cfg.levels + cfg.hashed
    if min(cfg.levels, cfg.classes) < 1 or 0 < cfg.max_rows < parts:
        raise ValueError(
            f"levels and classes must be at least 1, and max_rows 0 or that for each of {parts} parts: got "
            f"{cfg.levels}, {cfg.classes} and {cfg.max_rows}; raise them"
        )
    classes = cfg.max_rows // parts if cfg.max_rows else cfg.classes
    before = read_assignment(tables.assignments, table.name, table.rows) if tables.assignments else None
    hash_seed = 1 if before is None else before.hash_seed + 1
    hash_classes = classes if cfg.hashed else 0
    return Clustering(levels=cfg.levels, classes=classes, hash_classes=hash_classes, hash_seed=hash_seed, seed=cfg.seed)


def cluster(cfg: Config) -> Reports:
    """Cluster tables of a run, and write all that another run can begin with."""
    with g_pathmgr.open(f"{cfg.source}/config.json", "rb") as stream:
        record = json.loads(stream.read())
    spec, stored = DatasetSpec.from_json(record["shape"]), restore(TablesConfig, record["tables"])
    known = {table.name: table for table in spec.tables(dim=1)}
    path = checkpoint_path(f"{cfg.source}/checkpoints", cfg.step)
    step, data = read_progress(path).step, cfg.data or record["data"]
    saved = {table.name: table for table in saved_tables(path)}
    check_names(cfg, [name for name in saved if name in known])
    manifest = None if data == SYNTHETIC else Manifest.load(data)
    reports: Reports = {}
    for name, each in saved.items():
        tensors, metadata = {"weight": read_table(path, each)}, {"step": str(step)}
        moments = read_moments(path, each)
        table, how = known.get(name), None
        if table is not None:
            how = clustering(cfg, stored, table)
        if table is None or how is None or not chosen(cfg, table, how):
            tensors |= moments
        else:
            config = stored_as(table, stored, each.dim)
            of_ids = {
                moment: found for moment, rows in moments.items() if (found := moments_of(config, rows)) is not None
            }
            lookups = None if manifest is None else torch.from_numpy(lookups_of_ids(manifest, data, table))
            made = cluster_table(
                vectors_of(config, tensors["weight"]), how, moments=of_ids, weights=lookups, dtype=each.dtype
            )
            reports[name] = made.report | {"bytes": made.weight.nbytes + made.assignment.partition.listed_bytes}
            tensors, metadata = made.tensors(), metadata | made.assignment.metadata()
        save_file(tensors, f"{cfg.output}/{name}.safetensors", metadata)
    save_file(read_dense(path), f"{cfg.output}/{DENSE}")
    if not reports:
        raise ValueError(
            f"tables to cluster must have more rows than their clusters: got {', '.join(saved)}; lower --classes"
        )
    return reports


def classify(cfg: Config) -> Reports:
    """Classes of ids by a file of raw values."""
    spec = Manifest.load(cfg.source).spec
    tables = {table.name: table for table in spec.tables(dim=1)}
    check_names(cfg, list(tables))
    if len(cfg.tables) != 1:
        raise ValueError(f"--tables must name the one table whose values {cfg.file} has: got {cfg.tables}; name it")
    (name,) = cfg.tables
    feature = next(each for each in spec.sparse if each.name in tables[name].features)
    found = read_classes(cfg.file, spec, feature, vocabularies(cfg.source, spec).get(feature.name))
    hash_classes = max(found.assigned.classes) if cfg.hashed else 0
    assignment = Assignment(assigned=found.assigned, made=f"columns {found.names}", hash_classes=hash_classes)
    save_file(assignment.tensors(), f"{cfg.output}/{name}.safetensors", assignment.metadata())
    say(f"{found.unknown} values are none of {feature.name!r}; {found.without} ids have no class, and share class 0")
    more = {"levels": found.names, "unknown_values": found.unknown, "ids_without_class": found.without}
    return {
        name: collisions(assignment.partition, found.assigned) | more | {"bytes": assignment.partition.listed_bytes}
    }


def chosen(cfg: Config, table: Table, how: Clustering) -> bool:
    return table.name in cfg.tables or (not cfg.tables and table.rows > how.levels * how.classes + how.hash_classes)


def check_names(cfg: Config, names: list[str]) -> None:
    unknown = sorted(set(cfg.tables) - set(names))
    if unknown:
        raise ValueError(f"tables must be ones of {cfg.source}: got {', '.join(unknown)}; choose of {', '.join(names)}")


def main(cfg: Config) -> Reports:
    g_pathmgr.mkdirs(cfg.output)
    reports = classify(cfg) if cfg.file else cluster(cfg)
    for name, report in reports.items():
        say(f"{name}: " + ", ".join(f"{what.replace('_', ' ')} {value}" for what, value in report.items()))
    begin = "" if cfg.file else f" --tables.pretrained {cfg.output}"
    advice = f"--tables.kind clusters --tables.assignments {cfg.output}{begin}, added to a training command, uses them"
    say_closing(wrote=[f"classes of {len(reports)} tables into {cfg.output}"], next=[advice])
    print(json.dumps(reports))
    return reports


if __name__ == "__main__":
    run(main, COMMAND_LINE)
