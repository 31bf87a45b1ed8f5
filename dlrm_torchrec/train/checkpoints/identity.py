"""Whether a checkpoint belongs to a run: the run's whole config decides, but for the fields that may change."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

# Fields of a recipe's config that a resumed run may have other values of: they decide how training continues from
# here, and neither what the saved tensors are nor which rows they have been trained on. A name covers what is below it.
MAY_CHANGE = (
    "data",  # where the data lies; what it is stands in its spec
    "rows",  # a row is a function of its number, so a longer run begins with the same rows
    "epochs",
    "sparse.lr",
    "dense.lr",
    "schedule",
    "clip_norm",
    "bf16",
    "compile",
    "sharding",  # a checkpoint is resharded when it is loaded
    "node_size",  # with other ranks; the number of nodes is part of the identity
    "average_every",
    "eval_every",
    "checkpoint",
    "log",
    "run_dir",
)
MEASURED = ("pooling_factor",)  # parts of a spec that measuring the same data better may change


def identity_of(config: Any, spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What a checkpoint has in common with every run that may load it, as JSON.

    That is ``config``, a dataclass, without ``MAY_CHANGE`` and with ``spec``, the JSON of the data's, for its shape;
    and whatever ``more`` the recipe names.
    """
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "shape"}
    for name in MAY_CHANGE:
        *parents, last = name.split(".")
        holder = settings
        for parent in parents:
            holder = holder.get(parent, {})
        holder.pop(last, None)
    identity: dict[str, Any] = json.loads(json.dumps({"spec": spec, **settings, **more}))
    return identity


def first_difference(saved: Any, wanted: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The path and both values of the first place where two identities differ, other than in what is ``MEASURED``."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        keys = [key for key in {**saved, **wanted} if key not in MEASURED]
        pairs = [(f"{name}.{key}".strip("."), saved.get(key), wanted.get(key)) for key in keys]
    elif _are_records(saved) and _are_records(wanted) and len(saved) == len(wanted):
        pairs = [(f"{name}[{i}]", *values) for i, values in enumerate(zip(saved, wanted, strict=True))]
    else:
        return None if saved == wanted else (name, saved, wanted)
    differences = (first_difference(one, other, place) for place, one, other in pairs)
    return next((difference for difference in differences if difference is not None), None)


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
