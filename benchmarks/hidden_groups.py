"""AUC of clusters whose classes are those by which ids behave, against partitions that know nothing of the ids.

    python benchmarks/hidden_groups.py

Trains recipes/compare_embeddings.py's frontier in two worlds. In one, the ids of a hidden group, such as a brand, have
nine tenths of their effects in common; in the other one, each id's effect is its own. A clusters table has a row for
each group and a hash of ids beside it. Its bytes, two for the class of each id included, are those of the other ways.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
import tyro
from safetensors.torch import save_file

from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.embeddings.assignments import Assignment
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.recipe import load_recipe
from dlrm_torchrec.schema import Table

GROUPS, CODE = 64, 2  # bytes of a code


def most_rows(tables: Iterable[Table], ratio: float) -> int:
    """The rows that each table may have at most, so that rows and codes have the bytes of all rows over ``ratio``."""
    rows, row = [table.rows for table in tables], 4 * next(iter(tables)).dim
    fit = [
        limit
        for limit in range(GROUPS + 1, max(rows))
        if sum(min(n, limit) * row + CODE * n * (n > limit) for n in rows) <= sum(rows) * row / ratio
    ]
    return max(fit)


def write_groups(folder: Path, tables: Iterable[Table], stream: SyntheticStream, ratio: float) -> str:
    """The folder with the codes of all tables that have more rows than ``ratio`` allows."""
    folder.mkdir(parents=True, exist_ok=True)
    limit = most_rows(tables, ratio)
    for table in tables:
        if table.rows > limit:
            codes = torch.from_numpy(stream.groups(table.features[0]))
            assigned = Assigned([codes], complementary=False)
            made = Assignment(assigned=assigned, made="hidden groups", hash_classes=limit - GROUPS)
            save_file(made.tensors(), folder / f"{table.name}.safetensors", made.metadata())
    return str(folder)


def main(
    *,
    shares: tuple[float, ...] = (0.9, 0.0),
    ratios: tuple[float, ...] = (10, 30),
    ways: tuple[str, ...] = ("plain", "hash", "crt-mult", "hot-cold"),
    seeds: tuple[int, ...] = (0, 1, 2),
    run_dir: str = "runs/hidden_groups",
) -> None:
    """Prints the recipe's report for each share of effects that groups have in common."""
    recipe = load_recipe("compare_embeddings")
    base = recipe.PRESETS["frontier"]
    tables = base.shape.tables(dim=base.bottom[-1])
    for share in shares:
        stream = SyntheticStream(base.shape, num_rows=1, global_batch_size=1, seed=base.data_seed, grouped=share)
        folders = [write_groups(Path(run_dir, f"groups-{share}-{ratio}"), tables, stream, ratio) for ratio in ratios]
        sweep = replace(base.sweep, ways=ways, ratios=ratios, assignments=tuple(folders))
        recipe.main(f"share-{share}", replace(base, grouped=share, sweep=sweep, seeds=seeds, run_dir=run_dir))


if __name__ == "__main__":
    tyro.cli(main)
