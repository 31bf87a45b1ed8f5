"""What all rankers of candidates have in common: their inputs, the tokens of events, and the head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import JaggedTensor

from dlrm_torchrec.models.hstu.chunks import Rows, score_in_chunks
from dlrm_torchrec.models.hstu.config import HSTUConfig
from dlrm_torchrec.models.hstu.costs import Work
from dlrm_torchrec.models.hstu.heads import CandidateHead
from dlrm_torchrec.models.hstu.tokens import Contents, Context, Samples, values_of


class CandidateRanker(nn.Module):
    """Logits (C, labels) of the candidates of samples, from unpooled rows of tables."""

    def __init__(
        self,
        config: HSTUConfig,
        events: Sequence[str],
        context: Sequence[str],
        *,
        table_dim: int,
        num_actions: int,
        num_labels: int = 1,
        device: torch.device | None = None,
    ) -> None:
        """A ranker for rows of tables.

        Args:
            config: the sizes
            events: the features that have a row for each token, the item first
            context: the features that have a row for each sample
            table_dim: numbers of a table's row
            num_actions: actions that an event may have
            num_labels: labels of a candidate
            device: of the parameters
        """
        super().__init__()
        self.config, self.events, self.context_features = config, tuple(events), tuple(context)
        self.table_dim = table_dim
        # Tokens and candidates of a sample, for plans and summaries: the most, until ``expect`` says what data have.
        self.longest_tokens = self.sample_tokens = float(config.most_tokens - len(context))
        self.sample_candidates = 1.0
        self.contents = Contents(config, events, table_dim=table_dim, num_actions=num_actions, device=device)
        self.context = Context(config, context, table_dim=table_dim, device=device) if context else None
        self.head = CandidateHead(config, events, table_dim=table_dim, num_labels=num_labels, device=device)

    def forward(self, rows: Mapping[str, JaggedTensor], samples: Samples) -> torch.Tensor:
        """Logits of candidates, sample after sample.

        Raises ValueError unless events have a row for each token, and context one for each sample that has tokens.
        """
        values = values_of(rows, samples, self.events, self.context_features)
        return score_in_chunks(self.score, values, samples, self.config.chunk_tokens)

    @abstractmethod
    def score(self, rows: Rows, samples: Samples) -> torch.Tensor:
        """Logits of candidates from the rows of all their samples."""

    @abstractmethod
    def activation_bytes(self, num_samples: int) -> int:
        """Bytes that one step of a rank with so many samples holds at most, for plans; an upper bound in bfloat16."""

    @abstractmethod
    def served(self) -> nn.Module:
        """A module that maps the arguments of ``score`` to the same logits, where each sample has a candidate.

        ``torchrec.fx`` traces it and TorchScript compiles it. It has the parts of this module.
        """

    def expect(self, *, longest_tokens: float, sample_tokens: float, sample_candidates: float) -> None:
        """Sets the tokens of the longest sample, and tokens and candidates per sample of a batch.

        If batches are cut by samples and not by tokens, all samples of one may be the longest.
        """
        self.longest_tokens, self.sample_tokens = longest_tokens, sample_tokens
        self.sample_candidates = sample_candidates

    def work(self, num_samples: int) -> Work:
        """The work of so many samples."""
        return self._work(num_samples, self.sample_tokens)

    def most_work(self, num_samples: int) -> Work:
        """The most work of a rank's part of a batch, which has so many samples on average.

        A batch ends with the sample that fills it, and the parts of ranks differ by at most a sample.
        """
        tokens = self.sample_tokens + 2 * self.longest_tokens / max(1, num_samples)
        return self._work(num_samples, min(self.longest_tokens, tokens))

    def _work(self, num_samples: int, tokens: float) -> Work:
        return Work.of_equal_samples(
            num_samples,
            tokens,
            candidates=self.sample_candidates,
            features=len(self.events),
            context=len(self.context_features),
            table_dim=self.table_dim,
        )
