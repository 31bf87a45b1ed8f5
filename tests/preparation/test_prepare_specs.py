from __future__ import annotations

from torchrec.datasets.criteo import DEFAULT_CAT_NAMES, DEFAULT_INT_NAMES, DEFAULT_LABEL_NAME

from dlrm_torchrec.datasets.criteo import (
    criteo_1tb_multi_hot_spec,
    criteo_1tb_spec,
    criteo_kaggle_spec,
    criteo_raw_spec,
)


def test_names_are_torchrecs() -> None:
    for spec in (criteo_kaggle_spec(), criteo_1tb_spec(), criteo_1tb_multi_hot_spec()):
        assert spec.label == DEFAULT_LABEL_NAME
        assert [feature.name for feature in spec.dense] == DEFAULT_INT_NAMES
        assert [feature.name for feature in spec.sparse] == DEFAULT_CAT_NAMES
        assert all(feature.log1p for feature in spec.dense)


def test_published_sizes() -> None:
    assert sum(feature.rows for feature in criteo_kaggle_spec().sparse) == 33_762_577
    assert sum(table.rows * table.dim for table in criteo_kaggle_spec().tables(16)) == 540_201_232
    for spec in (criteo_1tb_spec(), criteo_1tb_multi_hot_spec()):
        assert sum(feature.rows for feature in spec.sparse) == 204_184_588
        assert max(feature.rows for feature in spec.sparse) == 40_000_000
    multi_hot = criteo_1tb_multi_hot_spec().sparse
    assert sum(feature.pooling_factor for feature in multi_hot) == 214
    assert all(feature.multi_hot for feature in multi_hot)


def test_raw_spec_bounds_hashed_rows() -> None:
    assert [feature.rows for feature in criteo_raw_spec("x", [5] * 25 + [50], "hash", max_ind_range=10).sparse] == (
        [6] * 25 + [11]
    )
    assert {feature.rows for feature in criteo_raw_spec("x", [5] * 26, "vocab").sparse} == {0}
