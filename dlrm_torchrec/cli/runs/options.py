"""The options that differ between runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlrm_torchrec.train.output.options import options_of

ABSENT = "\N{EN DASH}"  # an option that a run does not have


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The options that are not the same in all ``configs``, each with its value in every one."""
    flat = [options_of(config) for config in configs]
    names = list(dict.fromkeys(name for options in flat for name in options))
    values = {name: [options.get(name, ABSENT) for options in flat] for name in names}
    return {name: own for name, own in values.items() if len(set(own)) > 1}
