"""The batch of a stream of sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class SequenceBatch(Pipelineable):
    """One rank's share of one global batch: B samples with T tokens, of which C are candidates.

    The tokens of a sample are the events of its history and then its candidates, both by time. All candidates come
    after the history, and know nothing of each other: a model must not let one see another. All ranks hold the same
    number of samples, because the collectives need it; the last ones may be padding, which has no tokens.

    A loss or a metric counts candidates: they are the *rows* of ``num_rows`` and ``global_rows``.

    ``lengths`` and ``num_candidates`` stay on the host when the batch is moved: the shapes of what a model computes
    follow from them, and a host that reads them from a GPU waits for it.
    """

    # Keys in spec order, stride B, int64 ids: features of events have an id for each token, features of users one for
    # each sample, crosses one for each candidate.
    sparse_features: KeyedJaggedTensor
    times: torch.Tensor  # (T,) int64, seconds
    actions: torch.Tensor  # (T,) int64, ids of the events' actions from 1 on; 0 for candidates
    lengths: torch.Tensor  # (B,) int64, tokens of each sample; on the host
    num_candidates: torch.Tensor  # (B,) int64; on the host
    users: torch.Tensor  # (B,) int64, the number of each sample's user in the log; 0 for padding
    labels: torch.Tensor  # (C,) float32, 0 or 1
    num_rows: int  # candidates on this rank, C
    global_rows: int  # candidates over all ranks
    weights: torch.Tensor | None = None  # (C,) float32; None means that all are 1

    def ids_of_rows(self, feature: str) -> torch.Tensor:
        """The id of a feature of each candidate, (num_rows,) on the CPU: its own, or its user's.

        Without a feature, it is the number of its user.
        """
        if not feature:
            return self.users.repeat_interleave(self.num_candidates).cpu()
        bags, num_candidates = self.sparse_features[feature], self.num_candidates
        counts, ids = bags.lengths().long(), bags.values()
        if bool((counts == self.lengths).all()):  # of all tokens, the candidates of a sample last
            sample = torch.arange(len(counts), device=ids.device).repeat_interleave(counts)
            place = torch.arange(len(ids), device=ids.device) - (counts.cumsum(0) - counts)[sample]
            ids = ids[place >= (counts - num_candidates)[sample]]
        elif bool((counts != num_candidates).any()):  # of users
            ids = ids.repeat_interleave(num_candidates[counts > 0])
        found: torch.Tensor = ids.cpu()
        return found

    def to(self, device: torch.device, non_blocking: bool = False) -> SequenceBatch:  # noqa: FBT001, FBT002  # TorchRec's
        return self._with(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SequenceBatch:
        return self._with(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        self.sparse_features.record_stream(stream)
        for part in self._tensors().values():
            part.record_stream(stream)

    def _with(
        self, change: Callable[[torch.Tensor | KeyedJaggedTensor], torch.Tensor | KeyedJaggedTensor]
    ) -> SequenceBatch:
        changed = {name: change(part) for name, part in self._tensors().items()}
        return replace(self, sparse_features=change(self.sparse_features), **changed)  # type: ignore[arg-type]  # alike

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Those that move to the device."""
        parts = {name: part for name, part in vars(self).items() if isinstance(part, torch.Tensor)}
        return {name: part for name, part in parts.items() if name not in ("lengths", "num_candidates")}
