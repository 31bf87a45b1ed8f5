"""The options of runs, one by one, and those that differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

SAME_FOR_ALL = ("run_dir",)  # a run's folder is its name already
ABSENT = "\N{EN DASH}"  # an option that a run does not have


def options_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted names and values; entries of a list that have a name go by it.

    >>> options_of({"lr": 0.1, "top": [64, 1], "shape": {"sparse": [{"name": "user", "rows": 9}]}, "run_dir": "runs"})
    {'lr': '0.1', 'top': '[64, 1]', 'shape.sparse.user.name': 'user', 'shape.sparse.user.rows': '9'}
    """
    return {name: text for name, text in _flat("", config).items() if name not in SAME_FOR_ALL}


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The options that are not the same in all ``configs``, each with its value in every one."""
    flat = [options_of(config) for config in configs]
    names = list(dict.fromkeys(name for options in flat for name in options))
    values = {name: [options.get(name, ABSENT) for options in flat] for name in names}
    return {name: own for name, own in values.items() if len(set(own)) > 1}


def _flat(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        value = {str(each.get("name", number)): each for number, each in enumerate(value)}
    if not isinstance(value, Mapping) or not value:
        return {prefix: value if isinstance(value, str) else json.dumps(value)}
    found: dict[str, str] = {}
    for name, each in value.items():
        found |= _flat(f"{prefix}.{name}" if prefix else str(name), each)
    return found
