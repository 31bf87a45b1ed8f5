"""The nouns of data whose rows are users' histories: what each event is, and what is asked of the events after one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TIME, ACTION = "time", "action"  # the columns of prepared files beside the features: seconds, and ids of actions
HOUR = "hour"  # of the day of a candidate's time, from 0 to 23; a part of crosses


@dataclass(frozen=True, kw_only=True)
class Cross:
    """A sparse feature of candidates that no file holds: the hash of some of their ids together."""

    name: str  # of the feature, whose encoding is 'hash'
    of: tuple[str, ...]  # features or marks of events, which are then the candidate's, features of users, or 'hour'


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A category of an event that has no table of its own, because only crosses read it."""

    name: str
    rows: int  # the number of ids, from 0 on
    encoding: Literal["id", "vocab"] = "id"  # whether raw values are ids, or have a vocabulary
    column: str = ""  # the raw column; empty means the name
    vocabulary: str = ""  # the digest of the vocabulary


@dataclass(frozen=True, kw_only=True)
class History:
    """What the rows of a spec are: a user each, with lists of events in the order of their times.

    A prepared file then has, per user, a list of ids for each feature of ``events`` and each of ``marks``, the lists
    ``time`` (seconds) and ``action`` (1 + the place of an action in ``actions``), and one id for each feature that is
    neither among ``events`` nor among ``crosses``: these say something about the user.
    """

    events: tuple[str, ...]  # sparse features with an id for each event; the first one is the item
    actions: tuple[str, ...]  # what users do with items, as the raw data call it
    positive: tuple[str, ...]  # the actions that make an event's label 1; every other action makes it 0
    crosses: tuple[Cross, ...] = ()
    counted: bool = False  # whether times are numbers from any start, and not dates or since 1970
    marks: tuple[Mark, ...] = ()
    user: str = ""  # the feature that tells users apart, which every row has; empty if none does

    def __post_init__(self) -> None:
        if not self.events or not self.actions:
            raise ValueError(
                f"a history must have a feature of events and an action: got {list(self.events)} and "
                f"{list(self.actions)}; name the item in 'events', and all actions in 'actions'"
            )
        if len(set(self.actions)) < len(self.actions) or not {*self.positive} <= {*self.actions}:
            raise ValueError(
                f"positive actions must be among the actions, which must be distinct: got {list(self.positive)} of "
                f"{list(self.actions)}; correct them"
            )

    @property
    def item(self) -> str:
        """The feature of the item of an event."""
        return self.events[0]

    @property
    def mark_names(self) -> list[str]:
        """The marks of an event."""
        return [mark.name for mark in self.marks]

    @property
    def cross_names(self) -> list[str]:
        """The features that are computed for candidates."""
        return [cross.name for cross in self.crosses]

    def users(self, features: Sequence[str]) -> list[str]:
        """Those of a spec's sparse ``features`` that have one id per user."""
        others = {*self.events, *self.cross_names}
        return [name for name in features if name not in others]

    def check(self, features: Sequence[str]) -> None:
        """Raises ValueError unless the sparse ``features`` of the spec fit."""
        named = [*self.events, *self.cross_names]
        unfit = [name for name in named if named.count(name) > 1 or name not in features]
        if HOUR in (*features, *self.mark_names):
            raise ValueError(
                f"features and marks of a history must not be called {HOUR!r}, as crosses call the hour of the day: "
                "got one; give it another name, and keep the raw one in 'column'"
            )
        others = [TIME, ACTION, *self.mark_names]
        if unfit or {*others} & {*features} or len({*others}) < len(others):
            raise ValueError(
                f"features of events and crosses must be sparse features, each named once, and none be one of the "
                f"distinct columns {others}: got {unfit or list(features)}; correct the history of the spec"
            )
        if self.user and self.user not in self.users(features):
            raise ValueError(
                f"the user of a history must be a feature of users, {self.users(features)}: got {self.user!r}; correct "
                "the history of the spec"
            )
        parts = {*self.events, *self.mark_names, *self.users(features), HOUR}
        for cross in self.crosses:
            if len(cross.of) < 2 or not {*cross.of} <= parts:
                raise ValueError(
                    f"cross {cross.name!r} must be of two or more of {sorted(parts)}: got {list(cross.of)}; correct it"
                )
