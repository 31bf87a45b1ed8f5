"""Prepare Census-Income (KDD) for training: 7 dense and 44 categorical features, label "earns more than 50,000".

    python data/census/prepare.py --input ../shared/data/census_income_kdd --output prepared/census

gives 159,618 rows in split ``train``, and 39,905 rows, the published test file, in ``val``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

import tyro

from dlrm_torchrec.datasets.prepared.manifest import join
from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.raw_parquet import ParquetReader
from dlrm_torchrec.preparation.splits import ByHash, Whole
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

# stored as log(1 + x), because amounts span five orders of magnitude and a bottom MLP needs inputs of similar scale
DENSE = (
    "age",
    "wage_per_hour",
    "capital_gains",
    "capital_losses",
    "stock_dividends",
    "num_emp",
    "weeks_worked",
)
# The label depends on age or capital gains in steps, which a small bottom MLP does not learn, so each number is also a
# category. Amounts are mostly zero, otherwise with too many values to learn: each also has a bucket per half octave.
AMOUNTS = ("wage_per_hour", "capital_gains", "capital_losses", "stock_dividends")
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
POSITIVE, NEGATIVE = "' 50000+.'", "' - 50000.'"  # the quotes and the leading blank are part of the text


HALF_OCTAVES = tuple(2 ** (k / 2) for k in range(34))  # the largest amount is 99,999


def spec(min_count: int) -> DatasetSpec:
    """The prepared features; ``unknown``, a sampling weight, and ``__index_level_0__`` are left out."""
    vocab = partial(SparseFeature, rows=0, encoding="vocab", min_count=min_count)
    bucket = partial(SparseFeature, rows=len(HALF_OCTAVES) + 2, encoding="bucket", boundaries=HALF_OCTAVES)
    return DatasetSpec(
        name="census",
        label="income_50k",
        positive_label=POSITIVE,
        dense=tuple(DenseFeature(name=name, log1p=True) for name in DENSE),
        sparse=(
            *(vocab(name=name) for name in SPARSE),
            *(vocab(name=f"{name}_value", column=name, part="number") for name in DENSE),
            *(bucket(name=f"{name}_bucket", column=name) for name in AMOUNTS),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    input: str  # Folder with train.parquet and test.parquet.
    output: str  # Folder to prepare.
    val_share: float = 0.0  # Share of training rows for 'val', to choose settings; test.parquet is then 'test'.
    min_count: int = 2  # A category seen less often in training is 'unseen'.
    row_group_rows: int = 8_192  # Rows that a rank reads at a time; few, so that several ranks share the rows evenly.
    overwrite: bool = False  # Replace a folder that is already prepared.


def main(cfg: Config) -> None:
    features = spec(cfg.min_count)
    reader = ParquetReader(columns=Columns(spec=features, negative_label=NEGATIVE))
    held_out = "test" if cfg.val_share else "val"
    train = ByHash("train", (("val", cfg.val_share),)) if cfg.val_share else Whole("train")
    sources = [
        Source(path=join(cfg.input, "train.parquet"), reader=reader, assignment=train),
        Source(path=join(cfg.input, "test.parquet"), reader=reader, assignment=Whole(held_out)),
    ]
    manifest = prepare(features, sources, cfg.output, overwrite=cfg.overwrite, row_group_rows=cfg.row_group_rows)
    rows = ", ".join(f"{split.rows:,} {name}" for name, split in manifest.splits.items())
    print(f"{cfg.output}: {rows} rows; {manifest.report['rows_quarantined']} malformed")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
