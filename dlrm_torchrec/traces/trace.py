"""Makes synthetic rows whose ids repeat as the ids of real data do: fits profiles, and generates prepared folders.

    python -m dlrm_torchrec.traces.trace fit prepared/criteo-kaggle --output kaggle.json
    python -m dlrm_torchrec.traces.trace histogram locality_stats_2021.txt --output production.json
    python -m dlrm_torchrec.traces.trace generate production.json --output prepared/trace --rows 1_000_000

``fit`` measures the LRU stack distances of every feature (``stack_distances``); ``histogram`` takes published counts of
how often ids are looked up (``reuse_profile``). A trace of stack distances hits an LRU cache of any size as often as
the data does, but none of its ids stays popular. A trace of counts has popular ids, but their order in time is random.
Use the folder to measure speed only: labels depend on the first dense column (P = its value, so the best AUC is 5/6)
and on no id.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import tyro
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.numpy_columns import IdLists
from dlrm_torchrec.datasets.prepared.manifest import NAME, DataFile, Manifest, Split, join
from dlrm_torchrec.datasets.prepared.writer import ROW_GROUP_ROWS, SplitWriter
from dlrm_torchrec.datasets.profile import read_feature
from dlrm_torchrec.traces.reuse_profile import read_locality_stats
from dlrm_torchrec.traces.stack_distances import measure
from dlrm_torchrec.traces.trace_profile import FeatureProfile, load, save
from dlrm_torchrec.traces.trace_rows import TraceRows


def fit(
    prepared: tyro.conf.Positional[str],
    output: str,
    *,
    split: str = "train",
    features: tuple[str, ...] = (),
    rows: int = 0,
) -> None:
    """Measure the stack distances of the ids of a prepared folder, in the order of its files.

    Args:
        prepared: folder with a dataset.json
        output: JSON file to write
        split: split whose rows are measured
        features: names of sparse features; by default all
        rows: number of first rows to measure; 0 means all
    """
    manifest = Manifest.load(prepared)
    if split not in manifest.splits or not manifest.splits[split].rows:
        have = {name: part.rows for name, part in manifest.splits.items()}
        raise ValueError(f"split must be one of {prepared} that has rows: got {split!r} of {have}; name another")
    if rows < 0:
        raise ValueError(f"rows must be at least 0: got {rows}; 0 measures all")
    known = {feature.name: feature for feature in manifest.spec.sparse}
    if not known.keys() >= set(features):
        raise ValueError(f"features must be among {sorted(known)}: got {list(features)}; correct the names")
    managed = [name for name in features or known if known[name].encoding == "managed"]
    if managed:
        raise ValueError(
            f"ids of a trace must be rows of their table: got feature {managed[0]!r}, whose table manages 64-bit ids; "
            "name the other features in --features"
        )
    print(f"{'feature':20}  table rows     lookups    distinct  hits of an LRU cache of 1k rows    100k")
    measured = min(rows or sys.maxsize, manifest.splits[split].rows)
    profiles = []
    for name in features or known:
        read = _first_rows(read_feature(manifest, prepared, split, known[name]), measured)
        profile = measure((bags.values for bags in read), known[name].rows)
        factor = profile.lookups / measured
        profiles.append(FeatureProfile(name=name, rows=known[name].rows, pooling_factor=factor, profile=profile))
        hits = f"{profile.hit_rate(1_000):32.1%}  {profile.hit_rate(100_000):6.1%}"
        print(f"{name:20}  {known[name].rows:10,}  {profile.lookups:10,}  {profile.distinct:10,}  {hits}", flush=True)
    save(profiles, output)
    print(f"the profile is {output}")


def histogram(
    stats: tyro.conf.Positional[str],
    output: str,
    *,
    section: str = "",
    features: int = 8,
    table_rows: int = 1_000_000,
) -> None:
    """Read how often ids are looked up from a locality_stats file of facebookresearch/dlrm_datasets.

    Args:
        stats: locality_stats file
        output: JSON file to write
        section: name of the data set in the file; by default the first
        features: number of features, which all follow the histograms of the section
        table_rows: rows of the table of each feature
    """
    sections = read_locality_stats(stats)
    name = section or next(iter(sections))
    if name not in sections:
        raise ValueError(f"section must be one of {', '.join(sections)}: got {section!r}; correct the name")
    profile, factor = sections[name]
    save(
        [
            FeatureProfile(name=f"trace_{number}", rows=table_rows, pooling_factor=factor, profile=profile)
            for number in range(features)
        ],
        output,
    )
    print(f"the profile is {output}: {name}, {profile.mean:.1f} lookups per id, {factor:.1f} ids per row of a feature")


def generate(
    profile: tyro.conf.Positional[str],
    output: str,
    *,
    rows: int,
    val_share: float = 0.1,
    dense: int = 13,
    seed: int = 0,
    row_group_rows: int = ROW_GROUP_ROWS,
) -> None:
    """Write a prepared folder whose ids follow a profile.

    Args:
        profile: JSON file that fit or histogram wrote
        output: folder to write, new or empty
        rows: number of rows, over all splits
        val_share: share of the rows that go to split 'val', the last ones
        dense: number of dense columns
        seed: seed of everything that is random
        row_group_rows: what one rank reads at a time
    """
    if rows < 2 or dense < 1 or not 0 <= val_share < 1 or seed < 0:
        raise ValueError(
            "a trace must have at least 2 rows and 1 dense column, val_share in [0, 1) and a seed from 0: got "
            f"{rows}, {dense}, {val_share} and {seed}; change them"
        )
    if g_pathmgr.exists(join(output, NAME)):
        raise ValueError(f"output must be a folder without a {NAME}: got {output}; remove it or name another")
    trace = TraceRows(load(profile), rows=rows, dense=dense, seed=seed)
    train = rows - round(rows * val_share)
    splits: dict[str, Split] = {}
    first = 0
    for split, end in (("train", train), ("val", rows)):
        if end == first:
            continue
        with SplitWriter(output, split, unit=0, schema=trace.schema, row_group_rows=row_group_rows) as writer:
            for start in range(first, end, row_group_rows):
                writer.write(trace.take(min(row_group_rows, end - start)))
        files = (DataFile(path=file.path, rows=count, sha256=file.sha256) for file, count in writer.files)
        splits[split], first = Split(files=tuple(files)), end
    Manifest(spec=trace.spec, splits=splits, report={"profile": profile, "seed": seed}).save(output)
    print(f"{output}: {train:,} rows in split 'train', {rows - train:,} in 'val'")


def _first_rows(pieces: Iterator[IdLists], rows: int) -> Iterator[IdLists]:
    for bags in pieces:
        yield bags.slice(0, min(rows, len(bags.lengths)))
        rows -= len(bags.lengths)
        if rows <= 0:
            return


if __name__ == "__main__":
    try:
        tyro.extras.subcommand_cli_from_dict({"fit": fit, "histogram": histogram, "generate": generate})
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
