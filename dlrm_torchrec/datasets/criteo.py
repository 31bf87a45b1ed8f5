"""The Criteo click logs: column names, published table sizes, and specs.

Sources: Kaggle cardinalities, Naumov et al. 2019 (arXiv 1906.00091); 1TB rows, capped at 40,000,000, and multi-hot
sizes, MLPerf training (DLRM v1 and DLRM-DCNv2).
"""

from __future__ import annotations

from collections.abc import Sequence

from dlrm_torchrec.schema import DatasetSpec, DenseFeature, Encoding, SparseFeature

LABEL = "label"
DENSE_NAMES = tuple(f"int_{i}" for i in range(13))
SPARSE_NAMES = tuple(f"cat_{i}" for i in range(26))
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
