"""The Criteo click logs: column names, published table sizes, and specs.

Sources: Kaggle cardinalities, Naumov et al. 2019 (arXiv 1906.00091); 1TB rows, capped at 40,000,000, and multi-hot
sizes, MLPerf training (DLRM v1 and DLRM-DCNv2); Criteo_x1 and Criteo_x4, the logs of BARS (arXiv 2009.05794).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dlrm_torchrec.schema import DatasetSpec, DenseFeature, Encoding, SparseFeature

LABEL = "label"
DENSE_NAMES = tuple(f"int_{i}" for i in range(13))
SPARSE_NAMES = tuple(f"cat_{i}" for i in range(26))
BARS_COLUMNS = (*(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27)))  # of its files, but for the label
DENSE = tuple(DenseFeature(name=name, log1p=True) for name in DENSE_NAMES)

MAX_IND_RANGE = 40_000_000  # MLPerf takes every category modulo this before it numbers them

# fmt: off
KAGGLE_ROWS = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)
TERABYTE_ROWS = (
    40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10,
    2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36,
)
X1_ROWS = (  # of C1 to C26; one of each is for unseen values, and one that BARS does not use
    1462, 560, 413424, 248543, 307, 23, 12192, 635, 5, 54712, 5350, 409749, 3182,
    29, 12500, 365811, 12, 4934, 2096, 6, 397981, 20, 17, 88608, 98, 64073,
)
X4_ROWS = (  # of I1 to I13, then of C1 to C26, likewise
    44, 99, 122, 41, 220, 112, 80, 69, 92, 6, 27, 37, 72,
    1446, 554, 157339, 117822, 306, 18, 11882, 630, 5, 39530, 5131, 156656, 3176,
    28, 11043, 148913, 12, 4560, 2003, 5, 154564, 18, 17, 53031, 82, 40955,
)
MULTI_HOT_SIZES = (
    3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1,
    6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1,
)
# fmt: on


def criteo_kaggle_spec() -> DatasetSpec:
    """Criteo Kaggle: 45.8 M rows of 7 days, 33,762,577 embedding rows."""
    return _spec("criteo-kaggle", KAGGLE_ROWS)


def criteo_1tb_spec() -> DatasetSpec:
    """Criteo 1TB: 4.37 G rows of 24 days, 204,184,588 embedding rows."""
    return _spec("criteo-1tb", TERABYTE_ROWS)


def criteo_1tb_multi_hot_spec() -> DatasetSpec:
    """MLPerf's multi-hot Criteo 1TB: the rows of ``criteo_1tb_spec`` and 214 ids per sample."""
    return _spec("criteo-1tb-multi-hot", TERABYTE_ROWS, MULTI_HOT_SIZES)


def criteo_x1_spec(*, raw: bool = False) -> DatasetSpec:
    """Criteo_x1 of BARS: 45.8 M rows split 7:2:1, 13 normalised numbers, 26 categories, 2,086,329 embedding rows.

    ``raw`` gives the spec to prepare the published files with, whose vocabularies are still to be counted.
    """
    numbers = tuple(
        DenseFeature(name=name, column=column) for name, column in zip(DENSE_NAMES, BARS_COLUMNS[:13], strict=True)
    )
    names = zip(SPARSE_NAMES, BARS_COLUMNS[13:], X1_ROWS, strict=True)
    sparse = tuple(_counted(name, column, rows, raw=raw) for name, column, rows in names)
    return DatasetSpec(name="criteo-x1", label="label", dense=numbers, sparse=sparse)


def criteo_x4_spec(*, raw: bool = False) -> DatasetSpec:
    """Criteo_x4_001 of BARS: 45.8 M rows split 8:1:1, 39 categories, 910,747 embedding rows, and no numbers.

    The 13 integers become categories by ``squared_log``. A value seen fewer than 10 times counts as unseen. ``raw``
    gives the spec to prepare train.txt with, whose vocabularies are still to be counted.
    """
    names = zip((*DENSE_NAMES, *SPARSE_NAMES), BARS_COLUMNS, X4_ROWS, strict=True)
    sparse = tuple(_counted(name, column, rows, raw=raw, min_count=10) for name, column, rows in names)
    sparse = tuple(replace(each, part="squared_log") if each.name in DENSE_NAMES else each for each in sparse)
    return DatasetSpec(name="criteo-x4", label="Label", dense=(), sparse=sparse)


def _counted(name: str, column: str, rows: int, *, raw: bool, min_count: int = 1) -> SparseFeature:
    return SparseFeature(name=name, column=column, rows=0 if raw else rows, encoding="vocab", min_count=min_count)


def criteo_raw_spec(
    name: str, rows: Sequence[int], encoding: Encoding, *, min_count: int = 1, max_ind_range: int = 1 << 32
) -> DatasetSpec:
    """The spec to prepare raw Criteo files with: vocabularies to be counted, or hashes for ``rows`` (26) plus one.

    ``max_ind_range`` bounds these rows. The reader bounds a vocabulary: it takes the raw values modulo that
    number.
    """
    sizes = [0 if encoding == "vocab" else min(count, max_ind_range) + 1 for count in rows]
    sparse = tuple(
        SparseFeature(name=feature, rows=size, encoding=encoding, min_count=min_count)
        for feature, size in zip(SPARSE_NAMES, sizes, strict=True)
    )
    return DatasetSpec(name=name, label=LABEL, dense=DENSE, sparse=sparse)


def _spec(name: str, rows: Sequence[int], sizes: Sequence[int] | None = None) -> DatasetSpec:
    sparse = tuple(
        SparseFeature(
            name=feature,
            rows=count,
            multi_hot=sizes is not None,
            pooling_factor=float(sizes[i]) if sizes else 1.0,
        )
        for i, (feature, count) in enumerate(zip(SPARSE_NAMES, rows, strict=True))
    )
    return DatasetSpec(name=name, label=LABEL, dense=DENSE, sparse=sparse)
