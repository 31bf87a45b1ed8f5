"""Rankers for serving: scripted, they give the logits of the trained ones."""

import pytest
import torch
import torchrec.fx
from torch import nn

from dlrm_torchrec.models.hstu.attention import served
from dlrm_torchrec.models.hstu.attention.bias import time_buckets
from dlrm_torchrec.models.hstu.pooled import PooledRanker
from dlrm_torchrec.models.hstu.ranker import HSTURanker
from dlrm_torchrec.models.hstu.tokens import Samples
from tests.models.hstu.test_ranker import CONTEXT, EVENTS, KINDS, build, draw


class OfTensors(nn.Module):
    """A served ranker as a function of tensors alone."""

    def __init__(self, ranker: HSTURanker | PooledRanker) -> None:
        super().__init__()
        self.ranker, self.names = ranker.served(), (*ranker.events, *ranker.context_features)

    def forward(
        self, rows: list[torch.Tensor], times: torch.Tensor, actions: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        samples = Samples(times, actions, counts[0] + counts[1], counts[1])
        logits: torch.Tensor = self.ranker({name: rows[place] for place, name in enumerate(self.names)}, samples)
        return logits


def scripted(ranker: HSTURanker | PooledRanker) -> torch.jit.ScriptModule:
    module = OfTensors(ranker).eval()
    graph = torchrec.fx.Tracer(leaf_modules=["ServedAttention"]).trace(module)
    return torch.jit.script(torch.fx.GraphModule(module, graph))


def test_times_have_the_buckets_of_training() -> None:
    powers = 2 ** torch.arange(62)
    differences = torch.cat([torch.arange(-10, 2000), powers - 1, powers, powers + 1, powers // 2 * 3, -powers])
    assert torch.equal(served.time_buckets(differences), time_buckets(differences))


@KINDS
@pytest.mark.parametrize("context", [CONTEXT, ()])
@pytest.mark.parametrize("block", [512, 3])
def test_scripted_logits_are_those_of_the_trained_ranker(
    kind: str, context: tuple[str, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "BLOCK", block)
    torch.manual_seed(len(kind) + len(context) + block)
    ranker = build(kind, context)
    nn.init.normal_(ranker.head.logits[2].weight)  # type: ignore[arg-type]  # a linear layer
    program = scripted(ranker)
    generator = torch.Generator().manual_seed(block)
    for users in (1, 9):
        counts = torch.randint(1, 9, (users, 2), generator=generator)
        counts[:, 0] -= 1  # some have no history
        counts[0] = torch.tensor([8, 5])
        jagged, samples = draw([(int(events), int(asked)) for events, asked in counts])
        rows = {name: jagged[name].values() for name in (*EVENTS, *context)}
        with torch.no_grad():
            expected = ranker.score(rows, samples)
            found = program(list(rows.values()), samples.times, samples.actions, counts.T)
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
