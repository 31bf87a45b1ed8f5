"""A limit on how much all unanswered requests of a server may hold at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException


class Quota:
    """At most ``size`` units, named ``unit``, at a time; a request that needs more than is left is refused with 503."""

    def __init__(self, size: int, unit: str) -> None:
        self.size = size
        self.unit = unit
        self.held = 0

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        if self.held + amount > self.size:
            message = (
                f"waiting requests must hold at most {self.size} {self.unit}: got {self.held} and {amount} more; try "
                "later"
            )
            raise HTTPException(503, message, {"Retry-After": "1"})
        self.held += amount
        try:
            yield
        finally:
            self.held -= amount
