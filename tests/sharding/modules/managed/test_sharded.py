"""Sharded managed tables equal unsharded ones, forward and after steps, on 1 and 2 ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.managed.collection import ManagedEmbeddingBagCollection
from dlrm_torchrec.embeddings.table_files import write_table
from dlrm_torchrec.sharding.modules.managed.sharded import ManagedEmbeddingBagCollectionSharder
from tests.distributed import run_ranks
from tests.embeddings.managed.test_collection import batches, configs
from tests.sharding.sharded import ARGUMENTS, Wrapped, hand_made_plan

TABLE_WISE = {"plain": "row_wise", "managed": "table_wise", "qr": "table_wise"}
ROW_WISE = {"plain": "row_wise", "managed": "row_wise", "qr": "row_wise"}  # qr sends products as ordinals


def shard(
    tables: ManagedEmbeddingBagCollection, kinds: Mapping[str, str], optimizer: type[torch.optim.Optimizer]
) -> DistributedModelParallel:
    """``tables`` sharded by ``kinds``, with the same weights and maps."""
    stored = [getattr(config, "logical", config) for config in tables.physical_configs()]
    sharded = ManagedEmbeddingBagCollection(stored, tables.is_weighted(), torch.device("meta"))
    apply_in_backward(optimizer, sharded.parameters(), dict(ARGUMENTS[optimizer]))
    model = DistributedModelParallel(
        Wrapped(sharded),
        device=torch.device("cpu"),
        plan=ShardingPlan({"tables": hand_made_plan(sharded, kinds)}),
        sharders=[ManagedEmbeddingBagCollectionSharder(optimizer)],
    )
    model.module.tables.load_state_dict(tables.state_dict())
    return model


def part(batch: KeyedJaggedTensor, first: int, last: int) -> KeyedJaggedTensor:
    """Some samples of a batch."""
    values, weights, lengths = [], [], []
    for bags in batch.to_dict().values():
        start, end = int(bags.offsets()[first]), int(bags.offsets()[last])
        values.append(bags.values()[start:end])
        lengths.append(bags.lengths()[first:last])
        if batch.weights_or_none() is not None:
            weights.append(bags.weights()[start:end])
    return KeyedJaggedTensor(
        batch.keys(), torch.cat(values), torch.cat(weights) if weights else None, lengths=torch.cat(lengths)
    )


def compare(kinds: Mapping[str, str], *, weighted: bool) -> int:
    """How many rows had ids in the end."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(7)
    tables = ManagedEmbeddingBagCollection(configs(update_every=2, policy="distance"), weighted)
    plain = torch.optim.SGD(tables.parameters(), **ARGUMENTS[torch.optim.SGD])
    model = shard(tables, kinds, torch.optim.SGD)
    share = 16 // ranks
    for batch in batches(9, weighted=weighted, seed=11):
        own = part(batch, rank * share, (rank + 1) * share)
        found, expected = model(own).wait(), tables(batch)
        for name, vectors in expected.to_dict().items():
            torch.testing.assert_close(found[name], vectors[rank * share : (rank + 1) * share])
        plain.zero_grad()
        found.values().square().sum().backward()
        (expected.values().square().sum() / ranks).backward()
        plain.step()
    ids_to_rows = tables.maps["managed"]
    ids_to_rows.settle()  # type: ignore[operator]  # a module
    for name, whole in ids_to_rows.named_buffers():
        for piece in model.state_dict()[f"tables.maps.managed.{name}"].local_shards():
            first, size = piece.metadata.shard_offsets[0], piece.metadata.shard_sizes[0]
            if name != "tallies":
                assert torch.equal(piece.tensor, whole[first : first + size]), name
    model.eval()
    tables.eval()
    before = {name: value.clone() for name, value in tables.state_dict().items()}
    (batch,) = batches(1, weighted=weighted, seed=2)
    own = part(batch, rank * share, (rank + 1) * share)
    for _ in range(2):
        found = model(own).wait()
        for name, vectors in tables(batch).to_dict().items():
            torch.testing.assert_close(found[name], vectors[rank * share : (rank + 1) * share])
    for name, value in tables.state_dict().items():
        assert torch.equal(value, before[name])
    return ids_to_rows.occupied()  # type: ignore[operator]  # likewise


@pytest.mark.parametrize("weighted", [False, True])
def test_sharded_equals_unsharded(weighted: bool) -> None:
    occupied = [run_ranks(ranks, compare_all, weighted)[0] for ranks in (1, 2)]
    assert occupied[0] == occupied[1]
    assert min(occupied[0]) > 30


def compare_all(weighted: bool) -> list[int]:
    return [compare(kinds, weighted=weighted) for kinds in (TABLE_WISE, ROW_WISE)]


def moments_of_changed_rows() -> list[float]:
    """The moment of each id's row, after the id got it from another."""
    tables = ManagedEmbeddingBagCollection(configs(update_every=1))
    model = shard(tables, TABLE_WISE, RowWiseAdagrad)
    seen = torch.arange(1_026)
    for ids in (seen[:300], seen[:300], seen[300:]):  # at first without a row
        bags = KeyedJaggedTensor(["a", "b", "c", "d"], ids, lengths=torch.tensor([0, len(ids), 0, 0]))
        (100 * model(bags).wait().values()).sum().backward()
    (module,) = [each for each in model.modules() if hasattr(each, "maps")]
    rows, own = module.maps["managed"].local.find(seen)
    (state,) = [
        value
        for name, states in model.fused_optimizer.state_dict()["state"].items()
        for value in states.values()
        if "managed" in name
    ]
    moments = state.local_shards()[0].tensor
    assert float(moments[rows[own]].min()) > 0
    model(KeyedJaggedTensor(["a", "b", "c", "d"], 9_000 + seen, lengths=torch.tensor([0, len(seen), 0, 0])))
    rows, own = module.maps["managed"].local.find(9_000 + seen)
    assert int(own.sum()) > 500
    return moments[rows[own]].unique().tolist()


def test_a_row_that_changes_hands_has_moments_of_0() -> None:
    assert run_ranks(1, moments_of_changed_rows) == [[0.0]]


def pretrained(folder: str) -> None:
    tables = ManagedEmbeddingBagCollection(configs())
    write_table(folder, "managed", torch.zeros(1_026, 8), "safetensors")
    with pytest.raises(ValueError, match="managed table 'managed' must begin without ids: got a file of its rows in"):
        initialize_tables(shard(tables, TABLE_WISE, torch.optim.SGD), seed=0, pretrained=folder)


def test_rows_without_their_ids_are_refused(tmp_path: Path) -> None:
    run_ranks(1, pretrained, str(tmp_path))


def refused() -> str:
    tables = ManagedEmbeddingBagCollection(configs())
    with pytest.raises(
        ValueError, match=r"sharding of table 'managed' must be one of \['table_wise', 'row_wise'\]"
    ) as e:
        shard(tables, {**TABLE_WISE, "managed": "column_wise"}, torch.optim.SGD)
    return str(e.value)


def test_other_sharding_types_are_refused() -> None:
    assert "one rank must decide which id a row belongs to" in run_ranks(1, refused)[0]
