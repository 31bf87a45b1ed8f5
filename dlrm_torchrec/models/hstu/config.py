"""The sizes of HSTU. No torch, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

Variant = Literal["paper", "mlperf"]


@dataclass(frozen=True, kw_only=True)
class HSTUConfig:
    """The sizes of the dense part of HSTU (arXiv 2402.17152); the defaults suit small data."""

    variant: Variant = "paper"
    """The layer of the paper, with a bias for distances in places and time, or that of MLPerf's dlrm_v4_hstu."""
    dim: int = 32
    """Numbers of a token between layers."""
    layers: int = 2
    """Number of layers."""
    heads: int = 2
    """Attention heads of a layer."""
    key_dim: int = 16
    """Numbers of a query and of a key of one head."""
    value_dim: int = 16
    """Numbers of a value and of a gate of one head."""
    hidden: int = 64
    """Width of the hidden layers of the MLPs that make tokens, judge items and give logits."""
    action_dim: int = 8
    """Numbers of the embedding of an action."""
    most_tokens: int = 128
    """What attention divides by: the tokens of the longest sequence and its context, or more; samples may raise it."""
    positions: int = 128
    """Rows of the embedding of positions; raised to the tokens of the longest sequence of samples."""
    time_buckets: int = 512
    """Rows of the embedding of an event's age, whose bucket is the root of its minutes."""
    input_dropout: float = 0.1
    """Share of the numbers of tokens that are dropped before the first layer in training; 0 means none."""
    dropout: float = 0.1
    """Share of the inputs of a layer's output projection that are dropped in training; 0 means none."""
    chunk_tokens: int = 0
    """Tokens of samples that are scored together, and again in the backward pass; 0 means all together, and once."""

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant of HSTU must be one of {get_args(Variant)}: got {self.variant!r}; name one")
        for field in fields(self):
            size = getattr(self, field.name)
            least = int(field.name != "chunk_tokens")
            if field.type == "int" and size < least:
                raise ValueError(f"{field.name} of HSTU must be at least {least}: got {size}; raise it")
            if field.type == "float" and not 0 <= size < 1:
                raise ValueError(f"{field.name} of HSTU must be at least 0 and below 1: got {size}; 0 means none")

    def holding(self, tokens: int) -> HSTUConfig:
        """The same sizes, with ``most_tokens`` and ``positions`` for sequences of up to ``tokens``, and context."""
        return replace(self, most_tokens=max(self.most_tokens, tokens), positions=max(self.positions, tokens))


DEMO = HSTUConfig(most_tokens=64, positions=64, input_dropout=0.0, dropout=0.0)  # of synthetic users, and small logs
# The reference has hidden layers of 256 in the MLPs that make tokens, and of 512 elsewhere; here all have one width.
MLPERF = HSTUConfig(  # dlrm_v4_hstu of MLPerf Training v6.1: 8 entries of context, 4,086 events, 1 candidate
    variant="mlperf", dim=512, layers=3, heads=4, key_dim=128, value_dim=128, hidden=512, most_tokens=4096,
    positions=8192, time_buckets=2048, input_dropout=0.2, dropout=0.1, chunk_tokens=65_536,
)  # fmt: skip
MLPERF_TWIN = HSTUConfig(  # its widths by 16 and its lengths by 128: 8 entries of context, 32 events, 1 candidate
    variant="mlperf", dim=32, layers=2, heads=2, key_dim=16, value_dim=16, hidden=32, most_tokens=41, positions=64,
    time_buckets=256, input_dropout=0.0, dropout=0.0,
)  # fmt: skip
ML_1M = HSTUConfig(  # HSTU-large of the paper's table on MovieLens-1M; the vectors of items have as many numbers
    variant="paper", dim=50, layers=8, heads=2, key_dim=25, value_dim=25, most_tokens=211, positions=211,
    input_dropout=0.2, dropout=0.2,
)  # fmt: skip
