"""How histories are cut into samples. No torch, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dlrm_torchrec.schema import DatasetSpec


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Which events are candidates, and how much of the history before them the model sees."""

    history: int = 64
    """Events of a history at most; the latest ones are kept."""
    candidates: int = 1
    """Candidates of a sample at most: the user's next events, which share the history before the first of them."""
    least: int = 1
    """Earlier events that a user must have for an event to be a candidate."""
    within: int = 0
    """Events before the candidates that a history is taken from; 0 means all."""
    pools: tuple[str, ...] = ()
    """Actions that a history keeps, each with an equal part of its events; none means all actions together."""
    anchors: tuple[str, ...] = ()
    """Actions of the events that may be candidates; none means all."""
    held_out: Literal["time", "last"] = "time"
    """Evaluate on the latest candidates of all users together, or on the last event of each user."""
    batch_by: Literal["tokens", "rows"] = "tokens"
    """Cut batches of equally many events and candidates together, or of equally many samples."""
    shuffle: bool = True
    """Train on the samples in random order, and not in the order of their times."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("history", self.history, max(1, len(self.pools))),
            ("candidates", self.candidates, 1),
            ("least", self.least, 0),
            ("within", self.within, 0),
        ):
            if value < least:
                raise ValueError(f"{name} of samples must be at least {least}: got {value}; raise it")
        if self.held_out == "last" and (self.candidates > 1 or self.anchors):
            raise ValueError(
                "samples of each user's last events must have one candidate of any action: got "
                f"{self.candidates} candidates and anchors {list(self.anchors)}; use held_out time"
            )

    def check(self, actions: Sequence[str]) -> None:
        """Raises ValueError unless pools and anchors are among the ``actions`` of the data."""
        unknown = [action for action in (*self.pools, *self.anchors) if action not in actions]
        if unknown:
            raise ValueError(f"pools and anchors must be actions of the data: got {unknown[0]!r}; name {list(actions)}")

    @property
    def tokens(self) -> int:
        """Events and candidates of the longest sample."""
        return self.history + self.candidates

    def sizes(self, spec: DatasetSpec) -> dict[str, float]:
        """What ``CandidateRanker.expect`` takes: how large the batches of these samples are.

        Where batches have equally many tokens, a sample has as many as the ids of an event's feature in ``spec`` say.
        """
        assert spec.history is not None
        mean = next(feature.pooling_factor for feature in spec.sparse if feature.name == spec.history.item)
        tokens = min(mean, self.tokens) if self.batch_by == "tokens" else self.tokens
        return {"longest_tokens": self.tokens, "sample_tokens": tokens, "sample_candidates": self.candidates}

    def of(self, spec: DatasetSpec) -> DatasetSpec:
        """The spec with at most as many ids per sample, which the planner counts, as a sample can have."""
        history = spec.history
        most = {} if history is None else dict.fromkeys(history.events, self.tokens)
        most |= {} if history is None else dict.fromkeys(history.cross_names, self.candidates)
        features = (
            replace(feature, pooling_factor=min(feature.pooling_factor, most.get(feature.name, 1)))
            for feature in spec.sparse
        )
        return replace(spec, sparse=tuple(features))


DEMO_SAMPLES = SamplesConfig(history=32, candidates=8)  # of synthetic users with changing interests, and small logs
