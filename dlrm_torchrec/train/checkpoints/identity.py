"""Whether a checkpoint belongs to a run: the whole config decides, except for the fields that may change."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

# Fields of a recipe's config that may change when a run is resumed. They decide only how training continues, and
# neither which tensors are saved nor which rows trained them. A name includes all fields below it.
MAY_CHANGE = (
    "data",  # the place of the data; their spec and digest say what they are
    "rows",  # a row is a function of its number, so a longer run begins with the same rows
    "epochs",
    "sparse.lr",
    "dense.lr",
    "schedule",
    "restart_rates",
    "windows.days",  # the windows that a run has trained on are kept with it, and compared
    "windows.missing",
    "publish",
    "clip_norm",
    "speed",
    "sharding",  # a checkpoint is resharded when it is loaded
    "node_size",  # it changes with the ranks; the number of nodes is part of the identity
    "average_every",
    "eval_every",
    "checkpoint",
    "log",
    "run_dir",
    "baseline",
)
MEASURED = ("pooling_factor",)  # parts of a spec that measuring the same data better may change


def identity_of(config: Any, spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The settings that a checkpoint must share with every run that loads it, as JSON.

    They are the dataclass ``config`` without ``MAY_CHANGE``, with the data's ``spec`` (as JSON) in place of its shape,
    and anything ``more`` that the recipe adds. A part of the config may have an ``identity`` of its own.
    """
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "shape"}
    settings |= {name: part.identity for name in settings if hasattr(part := getattr(config, name), "identity")}
    for name in MAY_CHANGE:
        *parents, last = name.split(".")
        holder = settings
        for parent in parents:
            holder = holder.get(parent, {})
        holder.pop(last, None)
    identity: dict[str, Any] = json.loads(json.dumps({"spec": spec, **more, **settings}))
    return identity


def first_difference(saved: Any, wanted: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The path and both values of the first difference between two identities, ignoring what is ``MEASURED``.

    Features are told by their names: ``spec.sparse['city'].vocabulary``.
    """
    if isinstance(saved, dict) and isinstance(wanted, dict):
        keys = [key for key in {**saved, **wanted} if key not in MEASURED]
        pairs = [(f"{name}.{key}".strip("."), saved.get(key), wanted.get(key)) for key in keys]
    elif _are_records(saved) and _are_records(wanted) and len(saved) == len(wanted):
        pairs = [(f"{name}[{_label(i, *both)}]", *both) for i, both in enumerate(zip(saved, wanted, strict=True))]
    elif _are_records(saved) and _are_records(wanted):
        return name, [each.get("name") for each in saved], [each.get("name") for each in wanted]
    else:
        return None if saved == wanted else (name, saved, wanted)
    differences = (first_difference(one, other, place) for place, one, other in pairs)
    return next((difference for difference in differences if difference is not None), None)


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _label(index: int, saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    name = saved.get("name")
    return repr(name) if name is not None and name == wanted.get("name") else str(index)
