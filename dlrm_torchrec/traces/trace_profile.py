"""The profile that a trace is made from, stored as JSON: for each feature its table, bags, and how ids repeat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import index
from typing import Any

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.files import write_json
from dlrm_torchrec.traces.reuse_profile import ReuseProfile
from dlrm_torchrec.traces.stack_distances import StackProfile

FORMAT = 1
MAX_ROWS = 1 << 31  # ids are int32


@dataclass(frozen=True, kw_only=True)
class FeatureProfile:
    """One feature of a trace; a ``pooling_factor`` (mean number of ids per row) of 1 means one id in every row."""

    name: str
    rows: int  # of its table
    pooling_factor: float
    profile: StackProfile | ReuseProfile

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= MAX_ROWS or self.pooling_factor <= 0:
            raise ValueError(
                f"feature {self.name!r} of a trace must have a table of 1 to {MAX_ROWS} rows and a positive pooling "
                f"factor: got {self.rows} and {self.pooling_factor}; leave it out"
            )


def save(features: Sequence[FeatureProfile], path: str) -> None:
    """Write the profile of a trace to a JSON file."""
    folder, _, name = path.rpartition("/")
    write_json(
        folder or ".", name, {"format": FORMAT, "features": [_to_json(feature) for feature in features]}, indent=1
    )


def load(path: str) -> tuple[FeatureProfile, ...]:
    """The profile that ``save`` wrote. Raises ValueError for any other file."""
    try:
        with g_pathmgr.open(path, "r") as file:
            data = json.load(file)
        if data["format"] != FORMAT:
            raise ValueError(f"format must be {FORMAT}: got {data['format']!r}")
        return tuple(_from_json(feature) for feature in data["features"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must be a profile that this version of trace wrote: got {error!r}; fit it again"
        ) from error


def _to_json(feature: FeatureProfile) -> dict[str, Any]:
    fields = {"name": feature.name, "rows": feature.rows, "pooling_factor": feature.pooling_factor}
    if isinstance(feature.profile, StackProfile):
        return {**fields, "stack_distances": feature.profile.counts}
    return {**fields, "reuse": asdict(feature.profile)}


def _from_json(data: dict[str, Any]) -> FeatureProfile:
    fields = dict(data)
    profile: StackProfile | ReuseProfile
    if "reuse" in fields:
        reuse = fields.pop("reuse")
        profile = ReuseProfile(reuse["mean"], tuple(reuse["ids"]), tuple(reuse["lookups"]))
    else:
        profile = StackProfile(tuple(index(count) for count in fields.pop("stack_distances")))
    return FeatureProfile(**fields, profile=profile)
