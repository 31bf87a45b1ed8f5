"""Where the tokens of jagged sequences lie, and which of them are attended to together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

BLOCKS = {"cpu": 128, "cuda": 512}  # queries of one tile of scores, and the fewest keys
# Most scores of a head in one tile. Smaller tiles take more calls, and larger ones leave a CPU's caches.
TILE_SCORES = {"cpu": 2**17, "cuda": 2**24}
LEAST_FILLED = 0.85  # of the longest sequence of a group, the length of any other; shorter ones begin a new group
ALWAYS_TOGETHER = 8  # tokens by which lengths may always differ in a group


class Group(NamedTuple):
    """Sequences of about equal length, padded to one shape. Padding has the index one after the last token."""

    queries: torch.Tensor  # (users, longest) index of each token
    keys: torch.Tensor  # (users, most visible), the tokens before the candidates
    places: torch.Tensor  # (users, longest) place in the sequence; all candidates have the place after the last event
    history: int  # so many queries at the beginning are candidates of no user


@dataclass(frozen=True)
class Layout:
    """Sequences of users one after another: visible tokens in the order of time, then candidates.

    A visible token attends to itself and to those before it, a candidate to all visible tokens and to itself.
    """

    tokens: int
    block: int  # queries of one tile of scores, and the fewest keys
    tile_scores: int  # most scores of a head in one tile
    groups: list[Group]
    candidates: torch.Tensor  # (candidates,) indices of tokens


def make_layout(visible: torch.Tensor, candidates: torch.Tensor, device: torch.device | None = None) -> Layout:
    """The layout of sequences of ``visible[u]`` visible tokens and then ``candidates[u]`` candidates of each user u.

    Sequences are sorted by length and padded in groups whose lengths differ by at most ``1 - LEAST_FILLED``, so that
    short histories are never padded to the length of long ones.

    Args:
        visible: numbers of tokens (users,); a host waits for a device on which they are
        candidates: likewise
        device: of the layout's indices; None means that of the numbers

    Raises ValueError unless both have one number of at least 0 for each user.
    """
    if visible.shape != candidates.shape or visible.dim() != 1:
        raise ValueError(
            f"visible tokens and candidates must be counted once for each user: got shapes {tuple(visible.shape)} and "
            f"{tuple(candidates.shape)}; pass two vectors of equal length"
        )
    counts = torch.stack([visible, candidates]).long().cpu()
    if bool((counts < 0).any()):
        raise ValueError(f"numbers of tokens must be at least 0: got {int(counts.min())}; count tokens of each user")
    seen, lengths, tokens = counts[0], counts.sum(0), int(counts.sum())
    starts = lengths.cumsum(0) - lengths
    order = lengths.argsort(descending=True, stable=True)
    device = device or visible.device
    kind = "cpu" if device.type == "cpu" else "cuda"
    block, most = BLOCKS[kind], TILE_SCORES[kind]
    groups = []
    for first, last in _cuts(lengths[order].tolist(), block, most):
        users = order[first:last]
        groups.append(_group(starts[users], seen[users], lengths[users], padding=tokens, device=device))
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    is_candidate = torch.arange(tokens) - starts[owner] >= seen[owner]
    return Layout(
        tokens=tokens,
        block=block,
        tile_scores=most,
        groups=groups,
        candidates=sent(is_candidate.nonzero().squeeze(1), device),
    )


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on ``device``, by a copy that the host does not wait for."""
    return tensor if tensor.device == device else tensor.pin_memory().to(device, non_blocking=True)


def _cuts(lengths: list[int], block: int, most: int) -> list[tuple[int, int]]:
    """First and last place of each group of ``lengths``, which descend; sequences without tokens are in none."""
    cuts, first = [], 0
    while first < len(lengths) and lengths[first]:
        longest = lengths[first]
        least = max(1, min(int(LEAST_FILLED * longest), longest - ALWAYS_TOGETHER))
        side = min(longest, block)
        last = first + 1
        while last < len(lengths) and lengths[last] >= least and (last - first + 1) * side * side <= most:
            last += 1
        cuts.append((first, last))
        first = last
    return cuts


def _group(
    starts: torch.Tensor, seen: torch.Tensor, lengths: torch.Tensor, *, padding: int, device: torch.device
) -> Group:
    def indices(counts: torch.Tensor) -> torch.Tensor:
        places = torch.arange(int(counts.max()))
        return sent(torch.where(places < counts[:, None], starts[:, None] + places, padding), device)

    longest = int(lengths.max())
    places = torch.arange(longest).minimum(seen[:, None])
    history = int(torch.where(seen < lengths, seen, longest).min())
    return Group(indices(lengths), indices(seen), sent(places, device), history)
