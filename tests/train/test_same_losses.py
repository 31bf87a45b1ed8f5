"""The promise of design section 6: the same losses for any sharding and number of ranks.

The reference is plain PyTorch: an unsharded TorchRec DLRM, torch.optim, a loop.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.models.dlrm import DLRM
from torchrec.optim import RowWiseAdagrad

from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows
from dlrm_torchrec.embeddings.initialize import fill_table
from tests.recipe import records, run_recipe

STEPS, BATCH, SEED = 20, 256, 3
TOLERANCE = 1e-5  # relative: float32 rounds sums to 6e-8, in another order on every number of ranks, for 20 steps
# rates by which tables matter: one that is 0.1 % wrong changes losses by 7e-5 and more
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 100.0}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05, "eps": 1e-8}),
    "rowwise_adagrad": (RowWiseAdagrad, {"lr": 0.05, "eps": 1e-8}),
}


def plain_losses(optimizer: str, bottom: list[int], top: list[int]) -> list[float]:
    """Losses of plain PyTorch, unsharded, in float32."""
    spec = demo_spec()
    torch.manual_seed(SEED)
    tables = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=t.name, num_embeddings=t.rows, embedding_dim=t.dim, feature_names=list(t.features))
            for t in spec.tables(dim=bottom[-1])
        ]
    )
    torch.manual_seed(SEED)  # the dense weights are the first draws of a recipe, whose tables are on meta
    model = DLRM(tables, len(spec.dense), bottom, top)
    for table in tables.embedding_bag_configs():
        weight = tables.embedding_bags[table.name].weight.data
        fill_table(weight, [InitialRows.plain(table.num_embeddings)], seed=SEED, table=table.name)
    kind, arguments = OPTIMIZERS[optimizer]
    table_optimizer = kind(tables.parameters(), **arguments)
    dense = [p for name, p in model.named_parameters() if ".embedding_bags." not in name]
    dense_optimizer = torch.optim.SGD(dense, lr=0.1)
    losses = []
    stream = SyntheticStream(spec, num_rows=STEPS * BATCH, global_batch_size=BATCH, seed=SEED)
    for batch in stream.batches():
        logits = model(batch.dense_features, batch.sparse_features).squeeze(-1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
        table_optimizer.zero_grad()
        dense_optimizer.zero_grad()
        loss.backward()
        table_optimizer.step()
        dense_optimizer.step()
        losses.append(loss.item())
    return losses


def recipe_losses(folder: Path, optimizer: str, sharding: str, world_size: int) -> list[float]:
    """Losses of the recipe, read from its metrics.jsonl."""
    lr = OPTIMIZERS[optimizer][1]["lr"]
    arguments = [
        "demo", f"--rows={STEPS * BATCH}", f"--batch-size={BATCH}", f"--seed={SEED}", f"--run-dir={folder}",
        f"--sparse.kind={optimizer}", f"--sparse.lr={lr}", "--dense.kind=sgd", "--dense.lr=0.1",
        f"--sharding.kind={sharding}", "--log.every=1", "--eval-every=0",
        "--schedule.warmup-steps=0", "--schedule.decay-steps=0",
    ]  # fmt: skip
    run_recipe("train_dlrm", arguments, world_size)
    return [record["train/loss"] for record in records(folder / "demo") if "train/loss" in record]


KINDS = ["data_parallel", "table_wise", "column_wise", "row_wise", "table_row_wise"]
CASES = [
    *(("sgd", kind) for kind in KINDS),
    *(("adagrad", kind) for kind in KINDS),
    *(("rowwise_adagrad", kind) for kind in KINDS if kind != "column_wise"),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_rank_equals_plain_pytorch(tmp_path: Path, optimizer: str) -> None:
    expected = plain_losses(optimizer, [64, 16], [64, 32, 1])
    assert expected[-1] < expected[0]
    assert recipe_losses(tmp_path, optimizer, "auto", 1) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(("optimizer", "sharding"), CASES)
def test_two_ranks_equal_plain_pytorch(tmp_path: Path, optimizer: str, sharding: str) -> None:
    expected = plain_losses(optimizer, [64, 16], [64, 32, 1])
    assert recipe_losses(tmp_path, optimizer, sharding, 2) == pytest.approx(expected, rel=TOLERANCE)
