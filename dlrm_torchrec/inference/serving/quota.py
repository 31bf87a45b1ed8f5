"""A limit on how much all unanswered requests of a server may hold at once, and those of one client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from math import ceil

from starlette.exceptions import HTTPException


class Quota:
    """At most ``size`` units, named ``unit``, at a time; a request that needs more than is left is refused with 503."""

    def __init__(self, size: int, unit: str, client_share: float = 1.0) -> None:
        """``client_share`` is the largest part of them that the requests of one client may hold."""
        self.size = size
        self.client_size = ceil(size * client_share)
        self.unit = unit
        self.held = 0
        self._by_client = Counter[str]()

    @contextmanager
    def holding(self, client: str, amount: int = 0) -> Iterator[Callable[[int], None]]:
        """Holds ``amount`` units until the end of the block; a call of the result with a further amount adds to it."""
        held = 0

        def add(more: int) -> None:
            nonlocal held
            self._check("waiting requests", self.size, self.held, more)
            self._check("waiting requests of one client", self.client_size, self._by_client[client], more)
            held += more
            self.held += more
            self._by_client[client] += more

        try:
            add(amount)
            yield add
        finally:
            self.held -= held
            self._by_client[client] -= held
            if not self._by_client[client]:
                del self._by_client[client]

    def _check(self, whose: str, most: int, held: int, more: int) -> None:
        if held + more > most:
            message = f"{whose} must hold at most {most} {self.unit}: got {held} and {more} more; try later"
            raise HTTPException(503, message, {"Retry-After": "1"})


def client_of(host: str) -> str:
    """The client behind an address: itself, or its network of 64 bits in IPv6, where a client has many addresses."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    return str(address.ipv4_mapped or ip_network((int(address) >> 64 << 64, 64)))
