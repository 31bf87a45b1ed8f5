"""Prepare Census-Income (KDD) for training: 7 dense and 33 categorical columns, label "earns more than 50,000".

    python data/census/prepare.py --input ../shared/data/census_income_kdd --output prepared/census

gives 159,618 rows in split ``train`` (less ``val_share``, which become ``val``) and 39,905 in ``test``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tyro

from dlrm_torchrec.datasets.columns import Columns
from dlrm_torchrec.datasets.manifest import join
from dlrm_torchrec.datasets.prepare import Source, prepare
from dlrm_torchrec.datasets.raw_parquet import ParquetReader
from dlrm_torchrec.datasets.splits import ByHash, Whole
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

# stored as log(1 + x): amounts of money span five orders of magnitude, and a bottom MLP wants inputs of a like scale
DENSE = (
    "age",
    "wage_per_hour",
    "capital_gains",
    "capital_losses",
    "stock_dividends",
    "num_emp",
    "weeks_worked",
)
SPARSE = (
    "class_worker",
    "det_ind_code",
    "det_occ_code",
    "education",
    "hs_college",
    "marital_stat",
    "major_ind_code",
    "major_occ_code",
    "race",
    "hisp_origin",
    "sex",
    "union_member",
    "unemp_reason",
    "full_or_part_emp",
    "tax_filer_stat",
    "region_prev_res",
    "state_prev_res",
    "det_hh_fam_stat",
    "det_hh_summ",
    "mig_chg_msa",
    "mig_chg_reg",
    "mig_move_reg",
    "mig_same",
    "mig_prev_sunbelt",
    "fam_under_18",
    "country_father",
    "country_mother",
    "country_self",
    "citizenship",
    "own_or_self",
    "vet_question",
    "vet_benefits",
    "year",
)
POSITIVE, NEGATIVE = "' 50000+.'", "' - 50000.'"  # quotes and leading blank are part of the text


def spec(min_count: int) -> DatasetSpec:
    """The columns used; ``unknown``, a sampling weight, and ``__index_level_0__`` are left out."""
    return DatasetSpec(
        name="census",
        label="income_50k",
        positive_label=POSITIVE,
        dense=tuple(DenseFeature(name=name, log1p=True) for name in DENSE),
        sparse=tuple(SparseFeature(name=name, rows=0, encoding="vocab", min_count=min_count) for name in SPARSE),
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    input: str  # folder with train.parquet and test.parquet
    output: str  # folder to prepare
    val_share: float = 0.0  # share of the training rows that become the split 'val'
    min_count: int = 1  # a category seen less often in training is 'unseen'
    row_group_rows: int = 8_192  # what one rank reads at a time: small, so that several ranks share the rows evenly
    overwrite: bool = False  # replace a folder that is prepared already


def main(cfg: Config) -> None:
    columns = spec(cfg.min_count)
    reader = ParquetReader(columns=Columns(spec=columns, negative_label=NEGATIVE))
    train = ByHash("train", (("val", cfg.val_share),)) if cfg.val_share else Whole("train")
    sources = [
        Source(path=join(cfg.input, "train.parquet"), reader=reader, assignment=train),
        Source(path=join(cfg.input, "test.parquet"), reader=reader, assignment=Whole("test")),
    ]
    manifest = prepare(columns, sources, cfg.output, overwrite=cfg.overwrite, row_group_rows=cfg.row_group_rows)
    rows = ", ".join(f"{split.rows:,} {name}" for name, split in manifest.splits.items())
    print(f"{cfg.output}: {rows} rows; {manifest.report['rows_quarantined']} malformed")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
