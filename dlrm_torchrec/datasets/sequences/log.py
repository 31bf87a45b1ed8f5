"""All events of all users in memory: one array per column, in which each user's events follow each other by time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm_torchrec.schema import DatasetSpec, History

Ints = NDArray[np.int64]
Ids = NDArray[np.signedinteger[Any]]  # int32 where the ids of a feature fit


@dataclass(frozen=True)
class EventLog:
    """E events of U users; the events of user u are those from ``starts[u]`` to ``starts[u + 1] - 1``."""

    starts: Ints  # (U + 1,)
    times: Ints  # (E,) seconds, ascending within a user
    actions: NDArray[np.uint8]  # (E,), 1 + the place of the action in the history's actions
    events: Mapping[str, Ids]  # (E,) by feature or mark of events
    users: Mapping[str, Ids]  # (U,) by feature of users

    def __len__(self) -> int:
        return len(self.times)

    @property
    def num_users(self) -> int:
        return len(self.starts) - 1

    def of(self, which: NDArray[np.bool_]) -> EventLog:
        """Those of the events that ``which`` (E,) tells, of the same users."""
        return EventLog(
            starts=np.append(0, which.cumsum())[self.starts],
            times=self.times[which],
            actions=self.actions[which],
            events={name: ids[which] for name, ids in self.events.items()},
            users=self.users,
        )

    @cached_property
    def user_of(self) -> NDArray[np.int32]:
        """The user of each event: (E,)."""
        return np.repeat(np.arange(self.num_users, dtype=np.int32), np.diff(self.starts))


def history_of(spec: DatasetSpec) -> History:
    """What the rows of a spec are. Raises ValueError if they are no histories."""
    if spec.history is None:
        raise ValueError(
            f"data for sequences must have a history in their spec: got none in {spec.name!r}; prepare a log of events "
            "with data/events/prepare.py"
        )
    return spec.history
