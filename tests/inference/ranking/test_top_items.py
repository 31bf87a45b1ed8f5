"""The best of all items, block by block, against a sort of all scores in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dlrm_torchrec.inference.ranking import top_items
from dlrm_torchrec.inference.ranking.top_items import TopItems

DIM, ROWS = 5, 60


class Products(nn.Module):
    def forward(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return states @ rows.T


def best(states: torch.Tensor, table: torch.Tensor, answers: list[set[int]], most: int) -> list[list[int]]:
    scores = (states.double() @ table.double().T).numpy()
    return [sorted(of, key=lambda item: -own[item])[:most] for own, of in zip(scores, answers, strict=True)]


@pytest.mark.parametrize("block", [1, 7, 8192])
@pytest.mark.parametrize("most", [1, 10, 100])
def test_they_are_the_first_of_all_items_in_order(block: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_items, "BLOCK_ITEMS", block)
    number = np.random.default_rng(block + most)
    for users, share in ((1, 0.9), (13, 0.5), (4, 0.0), (0, 0.9)):
        table, states = torch.from_numpy(number.normal(size=(ROWS, DIM))).float(), torch.randn(users, DIM)
        items = np.flatnonzero(number.random(ROWS) < share)
        taken = [
            number.integers(0, ROWS, number.integers(0, 30)) for _ in range(users)
        ]  # some are no items, some twice
        takers = np.repeat(np.arange(users), [len(each) for each in taken])
        program = torch.jit.script(TopItems(nn.Embedding.from_pretrained(table), Products()))
        flat = torch.from_numpy(np.concatenate([*taken, np.empty(0, np.int64)]))
        found, scores = program(states, torch.from_numpy(items), taken=flat, takers=torch.from_numpy(takers), most=most)
        expected = best(states, table, [set(items.tolist()) - set(each.tolist()) for each in taken], most)
        assert found.shape == scores.shape == (users, min(most, len(items)))
        for own, of_score, wanted, state in zip(found.tolist(), scores, expected, states, strict=True):
            assert own[: len(wanted)] == wanted
            torch.testing.assert_close(of_score[: len(wanted)], table[wanted] @ state)
            assert bool((of_score[len(wanted) :] == -torch.inf).all())


def test_memory_does_not_grow_with_the_number_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks hold at most so many scores, but at least so many items."""
    monkeypatch.setattr(top_items, "BLOCK_SCORES", 100)
    monkeypatch.setattr(top_items, "LEAST_ITEMS", 4)
    blocks = list[tuple[int, int]]()

    class Watched(nn.Module):
        def forward(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            blocks.append((len(states), len(rows)))
            return states @ rows.T

    module, none = TopItems(nn.Embedding(ROWS, DIM), Watched()), torch.empty(0, dtype=torch.int64)
    for users, largest in ((1, 60), (5, 20), (50, 4)):
        blocks.clear()
        with torch.no_grad():
            module(torch.randn(users, DIM), torch.arange(ROWS), taken=none, takers=none, most=3)
        assert max(count for _, count in blocks) == largest
        assert sum(count for _, count in blocks) == ROWS
