"""Lines of other packages that say nothing to the user of a recipe. Each filter names one of them and why."""

from __future__ import annotations

import logging
import warnings

# Messages of warnings, as the regular expressions that their beginnings match
_WARNINGS = (
    "Please use DTensor instead and we are deprecating ShardedTensor",  # TorchRec's tables are ShardedTensors
    "torch.distributed is disabled, unavailable or uninitialized",  # one process reads a checkpoint on purpose
)
_FBGEMM = f"\n{'':12}\x1b[33m\n{'':12}"  # what begins FBGEMM's warnings
# Loggers, and beginnings of their messages
_MESSAGES = {
    "": (
        "Sharding spec not found for",  # a table that every rank holds has no shards
        f"{_FBGEMM}_fbgemm_torch_compat_table has no entry",  # FBGEMM 1.6 does not know itself, once for each library
        "Could not load the library '",  # FBGEMM, which then raises what it has told
    ),
    "torch.fx._symbolic_trace": ("is_fx_tracing will return true",),  # TorchRec asks; its answer is right either way
}


def quiet_libraries() -> None:
    """Keep these lines off the terminal, in this process. It may be called more than once."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for category in (FutureWarning, UserWarning):  # between torch and torchrec, whose versions are locked together
        warnings.filterwarnings("ignore", category=category, module=r"torch(rec)?\.")
    for name, beginnings in _MESSAGES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(each, _Without) for each in logger.filters):
            logger.addFilter(_Without(beginnings))
    logging.getLogger("torchrec").setLevel(logging.ERROR)  # its planner reports as warnings what plans print


class _Without(logging.Filter):
    """Drops records whose message begins in one of these ways."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginnings)
