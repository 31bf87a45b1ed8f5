"""The example of docs/shard_your_own_module.md: on two ranks it computes and trains what it does on one."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import torch
import torch.distributed as dist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.distributed import run_ranks
from tests.recipe import ROOT
from tests.test_docs import PAGES, blocks

EXAMPLE = ROOT / "docs/examples/square_tables.py"
SIDES = {"user": 100, "item": 30, "city": 7}
RANKS, STEPS, ROWS = 2, 3, 5


def example() -> ModuleType:
    found = importlib.util.spec_from_file_location("square_tables", EXAMPLE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def bags(rank: int, step: int, seed: int) -> dict[str, list[list[int]]]:
    """Bags of 0 to 4 ids for each feature, of the whole range."""
    random = torch.Generator().manual_seed(seed + 100 * rank + step)
    return {
        name: [
            torch.randint(side * side, (int(size),), generator=random).tolist()
            for size in torch.randint(0, 5, (ROWS,), generator=random)
        ]
        for name, side in SIDES.items()
    }


def jagged(features: dict[str, list[list[int]]]) -> KeyedJaggedTensor:
    lists = [ids for each in features.values() for ids in each]
    values = torch.tensor([id_ for ids in lists for id_ in ids], dtype=torch.long)
    return KeyedJaggedTensor(list(features), values=values, lengths=torch.tensor([len(ids) for ids in lists]))


def trained(weights: dict[str, torch.Tensor], seed: int) -> list[torch.Tensor]:
    rank = dist.get_rank()
    outputs: list[torch.Tensor] = example().train(weights, [jagged(bags(rank, step, seed)) for step in range(STEPS)])
    return outputs


def by_hand(weights: dict[str, torch.Tensor], features: dict[str, list[list[int]]]) -> torch.Tensor:
    """The same id by id: products of a row of the first half and a row of the second half, summed over a bag."""
    vectors = []
    for name, side in SIDES.items():
        rows = weights[f"embedding_bags.t_{name}.weight"]
        sums = [
            sum((rows[i // side] * rows[side + i % side] for i in ids), torch.zeros(8).double())
            for ids in features[name]
        ]
        vectors.append(torch.stack(sums))
    return torch.cat(vectors, dim=1)


def test_two_ranks_train_what_one_does() -> None:
    seed = int(torch.randint(1 << 30, ()))
    model = example().Model(torch.device("cpu"))
    weights = {name: torch.randn(each.shape) for name, each in model.tables.state_dict().items()}
    found = run_ranks(RANKS, trained, weights, seed)
    double = {name: each.double().requires_grad_() for name, each in weights.items()}
    for step in range(STEPS):
        outputs = [by_hand(double, bags(rank, step, seed)) for rank in range(RANKS)]
        for rank, expected in enumerate(outputs):
            torch.testing.assert_close(found[rank][step].double(), expected, rtol=1e-4, atol=1e-4)
        torch.stack([output.square().mean() for output in outputs]).mean().backward()
        for each in double.values():
            assert each.grad is not None
            each.data -= each.grad
            each.grad = None


def test_the_unsharded_module_computes_the_same() -> None:
    seed = int(torch.randint(1 << 30, ()))
    model, features = example().Model(torch.device("cpu")), bags(0, 0, seed)
    weights = {name: each.double() for name, each in model.tables.state_dict().items()}
    torch.testing.assert_close(model(jagged(features)).double(), by_hand(weights, features), rtol=1e-5, atol=1e-6)


def test_the_page_shows_the_example_as_it_is() -> None:
    source = EXAMPLE.read_text()
    shown = [block for language, block in blocks(PAGES["shard_your_own_module.md"]) if language == "python"]
    assert len(shown) >= 3
    assert [block for block in shown if block not in source] == []
