"""Where tokens are in batches without padding: functions that ``torchrec.fx`` keeps whole and TorchScript compiles."""

import torch


@torch.fx.wrap
def to_first_candidates(owners: torch.Tensor, lengths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """How many places (T,) each token is before its sample's first candidate; 0 or less for candidates.

    Args:
        owners: (T,) the sample of each token
        lengths: (B,) tokens of each sample
        visible: (B,) those that are no candidates
    """
    starts = lengths.cumsum(0) - lengths
    return (starts + visible)[owners] - torch.arange(owners.size(0), device=owners.device)


@torch.fx.wrap
def after_context(owners: torch.Tensor, lengths: torch.Tensor, num_context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The order that puts context (B * num_context) before the tokens (T,) of each sample, and where tokens are then.

    The other arguments are those of ``to_first_candidates``.
    """
    sample = torch.arange(lengths.size(0), device=owners.device)
    starts = lengths.cumsum(0) - lengths + num_context * sample
    slots = starts.unsqueeze(1) + torch.arange(num_context, device=owners.device)
    indices = torch.arange(owners.size(0), device=owners.device) + num_context * (1 + owners)
    return torch.cat([slots.flatten(), indices]).argsort(), indices


@torch.fx.wrap
def histories_of(
    candidates: torch.Tensor, lengths: torch.Tensor, visible: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of a candidate and an event of its history: the candidate's number, and the event's place.

    Args:
        candidates: (C,) the sample of each candidate
        lengths: (B,) tokens of each sample
        visible: (B,) those that are no candidates
    """
    counts = visible[candidates]
    asker = torch.repeat_interleave(counts)
    place = torch.arange(asker.size(0), device=asker.device) - (counts.cumsum(0) - counts)[asker]
    return asker, (lengths.cumsum(0) - lengths)[candidates[asker]] + place
