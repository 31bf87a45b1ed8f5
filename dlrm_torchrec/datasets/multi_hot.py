"""Makes multi-hot data from one-hot data, as MLPerf training does for DLRM-DCNv2.

    python -m dlrm_torchrec.datasets.multi_hot prepared/criteo-1tb --output prepared/criteo-1tb-multi-hot

writes a folder whose ``dataset.json`` names the Parquet files of the first folder, and says how their ids become bags
when they are read. Nothing is copied, and every recipe takes the folder. With ``--materialize``, the new folder holds
Parquet files of lists instead, which give the same batches. For MLPerf's 214 ids they are about six times as large.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from iopath.common.file_io import g_pathmgr
from tqdm import tqdm

from dlrm_torchrec.datasets.criteo import MULTI_HOT_SIZES, SPARSE_NAMES
from dlrm_torchrec.datasets.prepared.decode import check_schema, read_bags
from dlrm_torchrec.datasets.prepared.expand import Expander, table_name, write_tables
from dlrm_torchrec.datasets.prepared.files import NewFile, is_local
from dlrm_torchrec.datasets.prepared.manifest import NAME, DataFile, Manifest, Split, join
from dlrm_torchrec.datasets.prepared.synthesis import Distribution, Generator, MultiHot
from dlrm_torchrec.schema import DatasetSpec

_LIST = pa.list_(pa.field("element", pa.int32(), nullable=False))  # without nulls, reading takes 3/4 of the time


def main(
    prepared: tyro.conf.Positional[str],
    output: str,
    *,
    sizes: tuple[int, ...] = (),
    distribution: Distribution = "uniform",
    generator: Generator = "counter",
    seed: int = 0,
    materialize: bool = False,
) -> None:
    """Make multi-hot data of a prepared folder of one-hot features.

    Args:
        prepared: folder with a dataset.json
        output: folder to write, new or empty
        sizes: ids per row of every sparse feature in order; 1 keeps a feature one-hot; by default MLPerf's for Criteo
        distribution: distribution of the ids that are added
        generator: counter needs no files; mt19937 gives the numbers of MLPerf's reference, in 23 GB of files
        seed: seed of the added ids
        materialize: write Parquet files that hold the bags, instead of making bags while reading
    """
    source = Manifest.load(prepared)
    multi_hot = MultiHot(sizes=_sizes(source.spec, sizes), distribution=distribution, generator=generator, seed=seed)
    made = replace(
        source,
        spec=replace(multi_hot.applied(source.spec), name=f"{source.spec.name}-multi-hot"),
        splits={name: _shared(split, prepared, output) for name, split in source.splits.items()},
        statistics={},  # the old ones are of one-hot ids
        multi_hot=multi_hot,
    )
    if g_pathmgr.exists(join(output, NAME)):
        raise ValueError(f"output must be a folder without a {NAME}: got {output}; remove it or name another")
    g_pathmgr.mkdirs(output)
    if generator == "mt19937":
        write_tables(multi_hot, made.spec.sparse, output)
    if materialize:
        splits = {name: _materialized(made, name, output) for name in made.splits}
        made = replace(made, splits=splits, multi_hot=None)
        if generator == "mt19937":
            for feature in multi_hot.sizes:
                g_pathmgr.rm(join(output, table_name(feature)))
    made.save(output)
    ids = sum(feature.pooling_factor for feature in made.spec.sparse)
    print(f"{output}: {sum(split.rows for split in made.splits.values()):,} rows, {ids:g} ids in each")


def _sizes(spec: DatasetSpec, sizes: Sequence[int]) -> dict[str, int]:
    names = tuple(feature.name for feature in spec.sparse)
    if not sizes and names == SPARSE_NAMES:
        sizes = MULTI_HOT_SIZES
    if len(sizes) != len(names) or min(sizes) < 1:
        raise ValueError(
            f"--sizes must be one number of ids, at least 1, per sparse feature {', '.join(names)}: got {list(sizes)}; "
            "give 1 to features that stay one-hot"
        )
    return {name: size for name, size in zip(names, sizes, strict=True) if size > 1}


def _shared(split: Split, prepared: str, output: str) -> Split:
    """The files of ``prepared`` as ``output`` names them. Local paths are relative, so both folders may be moved."""
    files = []
    for file in split.files:
        path = file.location(prepared)
        if is_local(path) and is_local(output):
            path = os.path.relpath(os.path.realpath(path), os.path.realpath(output))
        files.append(replace(file, path=path))
    return Split(files=tuple(files))


def _materialized(made: Manifest, name: str, output: str) -> Split:
    """Writes the files of the split again, row group by row group, with bags instead of ids."""
    split, expander = made.splits[name], Expander(made, output)
    files: list[DataFile] = []
    with tqdm(total=split.rows, desc=name, unit=" rows", unit_scale=True, disable=None) as progress:
        for file in split.files:
            path = file.location(output)
            with (
                g_pathmgr.open(path, "rb") as source,
                NewFile(output, f"{name}/part-{len(files):05d}.parquet") as target,
            ):
                parquet = pq.ParquetFile(source)
                check_schema(parquet.schema_arrow, made.stored_spec, path)
                schema = pa.schema(
                    field.with_type(_LIST) if field.name in expander.features else field
                    for field in parquet.schema_arrow
                )
                with pq.ParquetWriter(target, schema, compression="lz4", use_dictionary=False) as writer:
                    for group in range(parquet.num_row_groups):
                        rows = _materialized_group(parquet, group, schema, expander, path=path)
                        writer.write_table(rows, row_group_size=max(1, rows.num_rows))
                        progress.update(rows.num_rows)
            files.append(DataFile(path=target.path, rows=file.rows, sha256=target.stored.sha256))
    return Split(files=tuple(files))


def _materialized_group(
    parquet: pq.ParquetFile, group: int, schema: pa.Schema, expander: Expander, *, path: str
) -> pa.Table:
    kept = [name for name in schema.names if name not in expander.features]
    columns = dict(zip(kept, parquet.read_row_group(group, columns=kept).columns, strict=True))
    for name, feature in expander.features.items():
        bags = expander.bags(name, read_bags(parquet, group, feature, path))
        columns[name] = pa.ListArray.from_arrays(pa.array(bags.offsets, pa.int32()), bags.values)
    return pa.table([columns[name] for name in schema.names], schema=schema)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
