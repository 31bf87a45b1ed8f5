"""What a batch costs in the dense part of HSTU: multiply-adds, and bytes of activations. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from dlrm_torchrec.models.hstu.config import HSTUConfig

FLOAT_BYTES, INDEX_BYTES = 4, 8


@dataclass(frozen=True, kw_only=True)
class Work:
    """The sizes of what a rank does in one step, or of one sample."""

    samples: float
    tokens: float  # events and candidates of all samples
    candidates: float
    pairs: float  # of a token and one that it attends to, itself among them; context counts
    features: int  # of an event
    context: int  # features of a sample
    table_dim: int  # numbers of a table's row

    @classmethod
    def of_equal_samples(
        cls, samples: float, tokens: float, *, candidates: float, features: int, context: int, table_dim: int
    ) -> Work:
        """The work of samples that have ``tokens`` events and candidates each, of which ``candidates`` candidates."""
        visible = context + tokens - candidates
        pairs = visible * (visible + 1) / 2 + candidates * (visible + 1)
        return cls(
            samples=samples,
            tokens=samples * tokens,
            candidates=samples * candidates,
            pairs=samples * pairs,
            features=features,
            context=context,
            table_dim=table_dim,
        )

    @property
    def all_tokens(self) -> float:
        """Those of context, too."""
        return self.tokens + self.samples * self.context

    @property
    def pooled(self) -> float:
        """Pairs of a candidate and an event of its history, where candidates are spread evenly over samples."""
        return (self.tokens - self.candidates) * self.candidates / self.samples if self.samples else 0


def multiply_adds(config: HSTUConfig, work: Work) -> dict[str, float]:
    """Multiply-adds of each part in the forward pass, without hidden pairs of tokens.

    The backward pass needs twice as many, and in attention 2.5 times as many, because scores are computed again.
    """
    return {**_multiply_adds_of_ends(config, work), **layer_multiply_adds(config, work)}


def layer_multiply_adds(config: HSTUConfig, work: Work) -> dict[str, float]:
    """Those of all layers."""
    keys, values = config.heads * config.key_dim, config.heads * config.value_dim
    outputs = values if config.variant == "paper" else 3 * values
    return {
        "projections": config.layers * work.all_tokens * config.dim * 2 * (keys + values),
        "attention": config.layers * work.pairs * (keys + values),
        "outputs": config.layers * work.all_tokens * outputs * config.dim,
    }


def pooled_multiply_adds(config: HSTUConfig, work: Work) -> dict[str, float]:
    """Those of the baseline that pools the history."""
    return {
        **_multiply_adds_of_ends(config, work),
        "weights": work.pooled * (4 * config.dim * config.hidden + config.hidden + config.dim),
        "user": work.candidates * (2 + work.context) * config.dim**2,
    }


def _multiply_adds_of_ends(config: HSTUConfig, work: Work) -> dict[str, float]:
    """Those of the MLPs that make tokens, and of the ones that make logits."""
    dim, hidden, rows = config.dim, config.hidden, work.features * work.table_dim
    token = (rows + config.action_dim) * hidden + _mlps(work) * hidden * dim
    context = work.context * work.table_dim * dim
    return {
        "tokens": work.tokens * token + work.samples * context,
        "head": work.candidates * ((dim + 4) * dim + rows * hidden + 2 * hidden * dim + hidden),
    }


def moved_floats(config: HSTUConfig, work: Work) -> float:
    """Numbers that products of HSTU read and write in the forward pass, without weights."""
    return layer_moved_floats(config, work) + _moved_floats_of_ends(config, work)


def layer_moved_floats(config: HSTUConfig, work: Work) -> float:
    """Those of all layers."""
    keys, values = config.heads * config.key_dim, config.heads * config.value_dim
    outputs = values if config.variant == "paper" else 3 * values
    layer = 2 * config.dim + 4 * keys + 4 * values + outputs
    return config.layers * work.all_tokens * layer


def pooled_moved_floats(config: HSTUConfig, work: Work) -> float:
    """Those of the baseline that pools the history."""
    user = work.candidates * (3 + work.context) * config.dim
    return work.pooled * (6 * config.dim + 2 * config.hidden + 1) + user + _moved_floats_of_ends(config, work)


def _moved_floats_of_ends(config: HSTUConfig, work: Work) -> float:
    rows, mlps = work.features * work.table_dim, _mlps(work)
    token = rows + config.action_dim + mlps * (2 * config.hidden + config.dim)
    context = work.context * (work.table_dim + config.dim)
    candidate = rows + 4 * config.hidden + 4 * config.dim + 5
    return work.tokens * token + work.samples * context + work.candidates * candidate


def activation_bytes(config: HSTUConfig, work: Work) -> int:
    """Bytes that the dense part of a rank holds at most in one step, linear in tokens; rows of tables are not counted.

    They are what autograd keeps for the backward pass, and as much as one layer keeps once more, for its gradients.
    With ``chunk_tokens``, only one chunk is kept at a time. The gradients of the rows are always there. Numbers have 4
    bytes, so it is an upper bound for runs in bfloat16.
    """
    layer = work.all_tokens * _floats_of_layer(config) * FLOAT_BYTES
    kept = config.layers * layer + work.tokens * _bytes_of_token(config, work)
    kept += work.candidates * _floats_of_candidate(config, work) * FLOAT_BYTES
    return _bytes_of_step(config, work, kept + layer)


def pooled_activation_bytes(config: HSTUConfig, work: Work) -> int:
    """Those of the baseline that pools the history; what it keeps for pairs is counted twice, for their gradients."""
    pairs = work.pooled * _bytes_of_pair(config)
    kept = pairs + work.tokens * _bytes_of_token(config, work)
    user = (2 + work.context) * config.dim
    kept += work.candidates * (_floats_of_candidate(config, work) + user) * FLOAT_BYTES
    return _bytes_of_step(config, work, kept + pairs)


def _bytes_of_step(config: HSTUConfig, work: Work, of_samples: float) -> int:
    """``of_samples``, or the part of it for a chunk of them, and the gradients of rows."""
    share = 1.0
    if config.chunk_tokens and work.tokens:
        share = min(1.0, (config.chunk_tokens + config.most_tokens) / work.tokens)
    row_gradients = (work.tokens * work.features + work.samples * work.context) * work.table_dim * FLOAT_BYTES
    return int(share * of_samples + row_gradients)


def _mlps(work: Work) -> int:
    """MLPs that make the token of an event: of the item, of the action, and of all other features."""
    return 3 if work.features > 1 else 2


def _floats_of_layer(config: HSTUConfig) -> float:
    """Numbers that a layer keeps of each token."""
    keys, values = config.heads * config.key_dim, config.heads * config.value_dim
    projected = 2 * (keys + values)
    kept = 2 * config.dim + projected  # the input, its norm and what the projection gives
    kept += projected if config.variant == "paper" else values  # after SiLU
    gated = values if config.variant == "paper" else 3 * values
    dropped = gated if config.dropout else 0  # a CPU keeps a number for each that is dropped or not, a GPU a byte
    return kept + 2 * values + gated + dropped  # what is attended to, and its norm


def _bytes_of_token(config: HSTUConfig, work: Work) -> float:
    others = work.features - 1 if work.features > 2 else 0  # side by side
    floats = others * work.table_dim + config.action_dim + _mlps(work) * (3 * config.hidden + config.dim)
    dropped = config.dim if config.input_dropout else 0
    return (floats + dropped) * FLOAT_BYTES + 4 * INDEX_BYTES


def _bytes_of_pair(config: HSTUConfig) -> float:
    """Candidate and event, both with difference and product side by side, the hidden layer, and the two places."""
    return (6 * config.dim + 3 * config.hidden + 3) * FLOAT_BYTES + 2 * INDEX_BYTES


def _floats_of_candidate(config: HSTUConfig, work: Work) -> float:
    rows = work.features * work.table_dim
    return 2 * rows + 6 * config.hidden + 8 * config.dim
