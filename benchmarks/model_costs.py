"""Parameters and multiply-adds of all models of the book, part by part, and the sizes of RMC1 to RMC3 beside RMC1's.

    python benchmarks/model_costs.py              # seconds: tables are built without memory
    python benchmarks/model_costs.py --form json       # or page: the table of docs/deep_dive/architecture.md

Multiply-adds are those of one sample in the forward pass, as every recipe prints them before its first step; a row that
is looked up counts one for each of its numbers. The interaction is whatever vectors go through together: dot products,
crosses, the pairs of a factorisation machine, or the layers of HSTU. NeuMF's MLP is its top. The models have the sizes
of their presets; HSTU has those of MLPerf's dlrm_v4_hstu, with 4,086 events and one candidate. The last table has the
columns of Gupta et al. (HPCA 2020, table I): widths of layers, tables, rows and lookups as multiples of RMC1's.

Exits with 1 unless every module of a model has a formula and every parameter is counted in one part.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from dlrm_torchrec.datasets.synthetic.specs import interactions_spec
from dlrm_torchrec.embeddings.tables import build_sequence_tables
from dlrm_torchrec.models.hstu.config import MLPERF
from dlrm_torchrec.models.hstu.costs import multiply_adds
from dlrm_torchrec.models.hstu.model import SequenceRanker
from dlrm_torchrec.models.hstu.ranker import HSTURanker
from dlrm_torchrec.models.neumf import NeuMF
from dlrm_torchrec.models.summary import describe_model
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.schema import DatasetSpec, SparseFeature

EMBEDDING, BOTTOM, INTERACTION, TOP = PARTS = ("embedding", "bottom", "interaction", "top")
PART_OF = {
    "tables": EMBEDDING,
    "bottom MLP": BOTTOM,
    "dense_arch": BOTTOM,
    "interaction": INTERACTION,
    "inter_arch": INTERACTION,
    "score": INTERACTION,
    "top MLP": TOP,
    "over_arch": TOP,
}
MOVIELENS = interactions_spec(users=138_493, items=26_744)  # MovieLens-20M, which the presets read from the data
MODELS = {
    "LR": ("train_logistic", "criteo-kaggle"),
    "FM": ("train_fm", "criteo-kaggle"),
    "DeepFM": ("train_deepfm", "criteo-kaggle"),
    "DLRM": ("train_dlrm", "criteo-kaggle"),
    "DLRM, 1 TB": ("train_dlrm", "criteo-1tb"),
    "DCNv2, 1 TB": ("train_dcnv2", "mlperf"),
    "MF": ("train_mf", "ml-20m"),
    "NeuMF": ("train_neumf", "ml-20m"),
    "RMC1": ("train_rmc", "rmc1"),
    "RMC2": ("train_rmc", "rmc2"),
    "RMC3": ("train_rmc", "rmc3"),
}
EVENTS = {"item": 9_390_624, "artist": 1_293_395, "album": 3_367_692}  # rows of dlrm_v4_hstu, dim 512
CONTEXT = {
    "uid": 1_000_001,
    "user_artist": 100_000_000,
    "user_album": 40_000_000,
    "user_hour": 24_000_000,
    "item_hour": 40_000_000,
    "artist_hour": 32_000_000,
    "user_is_organic": 2_000_000,
    "user_artist_hour": 40_000_000,
}
TOKENS = 4_087  # events of a sample and its candidate
META = torch.device("meta")


class Cost(NamedTuple):
    """Of a part of a model."""

    parameters: int = 0
    multiply_adds: float = 0.0

    def plus(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.multiply_adds + other.multiply_adds)


def of_recipe(name: str, spec: DatasetSpec | None = None) -> tuple[nn.Module, dict[str, Cost]]:
    """A model of ``MODELS`` for its preset's data, or for other data of the same columns, and the cost of its parts."""
    recipe_name, preset = MODELS[name]
    recipe = load_training_recipe(recipe_name)
    cfg = recipe.PRESETS[preset]
    spec = spec or shape_of(name)
    task, tables = recipe.build(cfg, spec, 1, torch.device("cpu"))  # tables are on meta
    model: nn.Module = task.model
    return model, by_part(model, tables, spec)


def shape_of(name: str) -> DatasetSpec:
    recipe, preset = MODELS[name]
    shape: DatasetSpec = load_training_recipe(recipe).PRESETS[preset].shape
    return MOVIELENS if preset == "ml-20m" else shape


def hstu() -> tuple[nn.Module, dict[str, Cost]]:
    """MLPerf's model and the cost of its parts."""
    sparse = [
        SparseFeature(name=name, rows=rows, multi_hot=name in EVENTS, pooling_factor=TOKENS if name in EVENTS else 1.0)
        for name, rows in (EVENTS | CONTEXT).items()
    ]
    spec = DatasetSpec(name="yambda", label="listen_plus", dense=(), sparse=tuple(sparse))
    tables = build_sequence_tables(spec.tables(dim=MLPERF.dim))
    ranker = HSTURanker(MLPERF, list(EVENTS), list(CONTEXT), table_dim=MLPERF.dim, num_actions=7, device=META)
    ranker.sample_tokens = float(TOKENS)
    model = SequenceRanker(tables, ranker)
    return model, by_part(model, tables, spec)


def by_part(model: nn.Module, tables: nn.Module, spec: DatasetSpec) -> dict[str, Cost]:
    """Raises ValueError when a module has no formula, or a parameter is in no part or in two."""
    summary = describe_model(model, tables, spec, sparse="sgd", dense="sgd")
    found = dict.fromkeys(PARTS, Cost())
    for part in summary.parts:
        found[PART_OF[part.name]] = found[PART_OF[part.name]].plus(Cost(part.parameters, part.multiply_adds))
    score = getattr(model, "score", None)
    if isinstance(score, NeuMF):
        products = score.gmf_dim
        found[TOP] = Cost(found[INTERACTION].parameters, found[INTERACTION].multiply_adds - products)
        found[INTERACTION] = Cost(0, products)
    elif isinstance(score, HSTURanker):
        work = multiply_adds(score.config, score.work(1))
        found[BOTTOM] = Cost(weights(score.contents) + weights(score.context), work["tokens"])
        found[TOP] = Cost(weights(score.head), work["head"])
        layers = sum(work[name] for name in ("projections", "attention", "outputs"))
        found[INTERACTION] = Cost(weights(score.encoding) + weights(score.layers), layers)
    counted, stored = sum(cost.parameters for cost in found.values()), weights(model)
    if summary.uncounted or counted != stored:
        raise ValueError(
            f"costs must cover all of a model: got {counted:,} of {stored:,} parameters, and no formula for "
            f"{', '.join(summary.uncounted) or 'nothing'}; add it to dlrm_torchrec/models/costs.py"
        )
    return found


def weights(module: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) if module else 0


def relative(names: Sequence[str] = ("RMC1", "RMC2", "RMC3")) -> list[dict[str, Any]]:
    """The sizes of production's models as multiples of those of the first one, layers of its last hidden ones."""
    recipe = load_training_recipe("train_rmc")
    configs = [recipe.PRESETS[MODELS[name][1]] for name in names]
    first = configs[0]
    one = first.shape.sparse[0]
    rows = []
    for name, cfg in zip(names, configs, strict=True):
        feature = cfg.shape.sparse[0]
        rows.append(
            {
                "model": name,
                "dense columns": len(cfg.shape.dense) / len(first.shape.dense),
                "bottom FC": [width / first.bottom[-1] for width in cfg.bottom],
                "top FC": [width / first.top[-2] for width in cfg.top[:-1]],
                "tables": len(cfg.shape.sparse) / len(first.shape.sparse),
                "rows": feature.rows / one.rows,
                "dim": cfg.bottom[-1] / first.bottom[-1],
                "lookups": feature.pooling_factor / one.pooling_factor,
            }
        )
    return rows


def table(costs: dict[str, dict[str, Cost]], field: str) -> str:
    lines = [f"{'':12}" + "".join(f"{part:>18}" for part in PARTS) + "   in MLPs and interaction"]
    for name, parts in costs.items():
        numbers = [getattr(parts[part], field) for part in PARTS]
        share = 1 - numbers[0] / sum(numbers)
        lines.append(f"{name:12}" + "".join(f"{number:>18,.0f}" for number in numbers) + f"{share:>26.2%}")
    return "\n".join(lines)


def shown(value: Any) -> str:
    if isinstance(value, list):
        return " - ".join(f"{each:g}" for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def short(number: float) -> str:
    """Three digits, with k, M or G for thousands, millions and thousands of millions.

    >>> short(208), short(155_984), short(540_201_232), short(150_042_476_544), short(0)
    ('208', '156 k', '540 M', '150 G', '-')
    """
    for unit, name in ((10**9, " G"), (10**6, " M"), (10**3, " k"), (1, "")):
        if number >= unit:
            scaled = number / unit
            return f"{scaled:.{max(0, 2 - int(math.log10(scaled)))}f}{name}" if name else f"{number:.0f}"
    return "-"


def page(costs: dict[str, dict[str, Cost]]) -> str:
    """A table in Markdown that is narrow enough for a telephone."""
    lines = ["| model | in tables | elsewhere | lookups | bottom | interaction | top |", "|---" * 7 + "|"]
    for name, parts in costs.items():
        tables = parts[EMBEDDING].parameters
        numbers: list[float] = [tables, sum(cost.parameters for cost in parts.values()) - tables]
        numbers += [parts[part].multiply_adds for part in PARTS]
        lines.append(f"| {name} | {' | '.join(map(short, numbers))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=["text", "json", "page"], default="text", help="what is printed")
    args = parser.parse_args()
    try:
        costs = {name: of_recipe(name)[1] for name in MODELS} | {"HSTU": hstu()[1]}
    except ValueError as error:
        sys.exit(f"error: {error}")
    multiples = relative()
    if args.form == "page":
        print(page(costs))
        return
    if args.form == "json":
        told = {name: {part: cost._asdict() for part, cost in parts.items()} for name, parts in costs.items()}
        print(json.dumps({"models": told, "relative to RMC1": multiples}))
        return
    print(f"parameters\n{table(costs, 'parameters')}\n\nmultiply-adds of a sample\n{table(costs, 'multiply_adds')}\n")
    print(
        "sizes as multiples of RMC1's; those of layers, of its last bottom one and its last top one before the output"
    )
    for name in multiples[0]:
        print(f"{name:15}" + "".join(f"{shown(row[name]):>18}" for row in multiples))


if __name__ == "__main__":
    main()
