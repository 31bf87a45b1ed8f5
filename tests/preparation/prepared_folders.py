"""What a preparation left in a folder, and a raw folder to prepare, of all kinds of files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dlrm_torchrec.datasets.criteo import KAGGLE_ROWS, criteo_raw_spec
from dlrm_torchrec.preparation.prepare import Source
from dlrm_torchrec.preparation.readers.raw_criteo import CriteoReader
from dlrm_torchrec.preparation.splits import ByHash, LastPart, Whole
from dlrm_torchrec.schema import SparseFeature
from tests.preparation import criteo_files, criteo_mutations

HASHED = criteo_raw_spec("hashed", KAGGLE_ROWS, "hash", max_ind_range=1000)
# vocabularies of three features, which is enough, and hashes of the others
_COUNTED = ("cat_0", "cat_3", "cat_20")
MIXED = replace(
    HASHED,
    name="mixed",
    sparse=tuple(
        SparseFeature(name=feature.name, rows=0, encoding="vocab", min_count=2) if feature.name in _COUNTED else feature
        for feature in HASHED.sparse
    ),
)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_raw(folder: Path, rows: int = 1200) -> list[Source]:
    """Criteo files in ``folder``/raw, plain and gzip, with malformed lines, and where their rows go."""
    (folder / "raw").mkdir()
    rng = np.random.default_rng(0)
    sources = []
    for name, assignment in (
        ("a", Whole("train")),
        ("b", ByHash("train", (("val", 0.2),))),
        ("c.gz", Whole("train")),
        ("d", LastPart(4)),
    ):
        data = criteo_files.content(rng, rows if name == "a" else rows // 4)
        for mutation in (criteo_mutations.non_hex, criteo_mutations.long_line, criteo_mutations.blank_lines):
            data = mutation(rng, data)
        path = folder / "raw" / name
        path.write_bytes(criteo_mutations.whole_gzip(rng, data) if name == "c.gz" else data)
        sources.append(Source(path=str(path), reader=CriteoReader(block_bytes=9000), assignment=assignment))
    return sources
