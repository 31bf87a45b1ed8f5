"""Export the tables of a run as plain files, one per table, for other programs or another run.

    python recipes/export_tables.py runs/train_dlrm/demo --output tables
    python recipes/export_tables.py runs/train_dlrm/demo --output tables --format parquet --tables t_id_0 t_id_7
    python recipes/train_dlrm.py demo --tables.pretrained tables --run-dir runs/warm

A table is <table>.safetensors, with ``weight`` (rows, dim), or <table>.parquet, with ``id`` and ``vector``; row i
belongs to id i of the prepared data, whose vocab/ tells the raw values. It is whole, however many ranks trained it, and
no model or process group is needed: memory is that of the largest table. A compositional table is exported as it is
stored, its partitions one after another. Expected: the demo's ten tables, 25,350 rows of 16, a second after imports.
"""

import json
import sys
from dataclasses import dataclass

import tyro
from iopath.common.file_io import g_pathmgr
from tyro.conf import Positional

from dlrm_torchrec.embeddings.table_files import Format, write_table
from dlrm_torchrec.train.checkpoints.checkpoint import checkpoint_path
from dlrm_torchrec.train.checkpoints.tables import read_table, saved_tables


@dataclass(frozen=True, kw_only=True)
class Config:
    run: Positional[str]  # the folder of a run
    output: str  # a folder for the files; those there are replaced
    step: int | None = None  # of the checkpoint; the newest by default
    tables: tuple[str, ...] = ()  # only these
    format: Format = "safetensors"


def main(cfg: Config) -> dict[str, list[int]]:
    path = checkpoint_path(f"{cfg.run}/checkpoints", cfg.step)
    found = {table.name: table for table in saved_tables(path)}
    unknown = sorted(set(cfg.tables) - set(found))
    if unknown:
        raise ValueError(f"tables must be ones of {path}: got {', '.join(unknown)}; choose of {', '.join(found)}")
    g_pathmgr.mkdirs(cfg.output)
    for name in cfg.tables or found:
        print(write_table(cfg.output, name, read_table(path, found[name]), cfg.format), file=sys.stderr)
    shapes = {name: [found[name].rows, found[name].dim] for name in cfg.tables or found}
    print(json.dumps(shapes))
    return shapes


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
