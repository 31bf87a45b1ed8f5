"""Crosses of a log's columns, as a person names them; their ids are computed when samples are read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dlrm_torchrec.schema import SparseFeature
from dlrm_torchrec.sequence_schema import Cross

_FORM = re.compile(r"(?P<name>[^=]+)=(?P<parts>.+):(?P<rows>\d+)")


@dataclass(frozen=True, kw_only=True)
class SizedCross:
    """A cross and the rows of its table. Raises ValueError for fewer than 2 rows."""

    cross: Cross
    rows: int

    def __post_init__(self) -> None:
        self.feature()

    @classmethod
    def parse(cls, text: str) -> SizedCross:
        """The cross that ``name=part,part:rows`` says; ValueError for other texts."""
        found = _FORM.fullmatch(text)
        if not found:
            raise ValueError(
                f"a cross must be name=part,part:rows: got {text!r}; write it like user_x_artist=user,artist:1000000"
            )
        return cls(cross=Cross(name=found["name"], of=tuple(found["parts"].split(","))), rows=int(found["rows"]))

    def feature(self) -> SparseFeature:
        """Its sparse feature, which has an id for each candidate."""
        return SparseFeature(name=self.cross.name, rows=self.rows, encoding="hash", multi_hot=True)
