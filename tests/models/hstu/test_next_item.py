"""HSTU as a model of the next item."""

from __future__ import annotations

import torch

from dlrm_torchrec.models.hstu.config import HSTUConfig
from dlrm_torchrec.models.hstu.next_item import HSTUNextItem

CONFIG = HSTUConfig(dim=8, heads=2, key_dim=4, value_dim=4, most_tokens=12, positions=12)


def test_a_state_knows_no_later_item_and_no_time_after_that_of_the_next() -> None:
    model, lengths = HSTUNextItem(CONFIG).eval(), torch.tensor([5, 0, 1, 6])
    items, times = torch.randn(12, 8), torch.arange(12) * 100
    before = model(items, times, lengths)
    torch.testing.assert_close(before.norm(dim=1), torch.ones(12))

    def moved(items: torch.Tensor, times: torch.Tensor) -> list[int]:
        return (model(items, times, lengths) - before).abs().amax(1).nonzero().flatten().tolist()

    for place, last in ((1, 5), (5, 6), (8, 12)):
        other, later = items.clone(), times.clone()
        other[place] = torch.randn(8)
        assert moved(other, times) == [*range(place, last)]
        later[place] += 10**6
        first = place if place in (0, 5, 6) else place - 1
        assert moved(items, later)[:1] == ([first] if last - place > 1 or first < place else [])


def test_scores_are_cosines_over_the_temperature() -> None:
    model, items = HSTUNextItem(CONFIG, temperature=0.2), torch.randn(7, 8)
    states = torch.nn.functional.normalize(torch.randn(3, 8))
    expected = torch.stack([torch.cosine_similarity(state[None], items) for state in states]) / 0.2
    torch.testing.assert_close(model.scores(states, items), expected)


def test_it_learns_that_the_next_item_follows_from_the_one_before() -> None:
    torch.manual_seed(0)
    model, table = HSTUNextItem(CONFIG), torch.nn.Embedding(6, 8)
    optimizer = torch.optim.Adam([*model.parameters(), *table.parameters()], lr=0.02)
    lengths, follows = torch.full((16,), 8), torch.tensor([3, 5, 0, 1, 2, 4])
    for _ in range(60):
        ids = [torch.randint(6, (16,))]
        for _ in range(7):
            ids.append(follows[ids[-1]])
        sequences = torch.stack(ids, 1)
        states = model(table(sequences.flatten()), torch.arange(8).repeat(16), lengths).view(16, 8, -1)
        scores = model.scores(states[:, :-1].flatten(0, 1), table.weight)
        loss = torch.nn.functional.cross_entropy(scores, sequences[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((scores.argmax(1) == sequences[:, 1:].flatten()).float().mean()) > 0.95
