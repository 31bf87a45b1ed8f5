"""The options of a run, one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SAME_FOR_ALL = ("run_dir",)  # a run's folder is its name already


def options_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted names and values; entries of a list that have a name go by it.

    >>> options_of({"lr": 0.1, "top": [64, 1], "shape": {"sparse": [{"name": "user", "rows": 9}]}, "run_dir": "runs"})
    {'lr': '0.1', 'top': '[64, 1]', 'shape.sparse.user.name': 'user', 'shape.sparse.user.rows': '9'}
    """
    return {name: text for name, text in _flat("", config).items() if name not in SAME_FOR_ALL}


def _flat(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, dict) for each in value):
        value = {str(each.get("name", number)): each for number, each in enumerate(value)}
    if not isinstance(value, Mapping) or not value:
        return {prefix: value if isinstance(value, str) else json.dumps(value, default=str)}
    found: dict[str, str] = {}
    for name, each in value.items():
        found |= _flat(f"{prefix}.{name}" if prefix else str(name), each)
    return found
