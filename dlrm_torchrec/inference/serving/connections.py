"""The open connections of a server: a limit on all and on those of one client, and what happens at these limits."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
from collections import Counter
from contextlib import suppress
from math import ceil
from typing import Any

from dlrm_torchrec.inference.serving.quota import client_of

RESERVED_DESCRIPTORS = 32  # for the files of a package, and for connections that are being closed
MAX_REFUSALS = 64  # in a row, before the server does something else
MAX_WAITING = 2048  # connections that the system holds until they are accepted; it may hold fewer
RESET = struct.pack("ii", 1, 0)  # a close resets the connection: a client amid a large body would wait for a minute
MAX_CLOSING = 16  # connections that are cut but still have their descriptors


class Connections:
    """Counts connections by client; at a limit, a new one takes the place of one that has waited long.

    A connection waits until a request has arrived as a whole, so slow and idle clients make room for others. The one
    that has waited longest is cut, of those that were answered before or of those that were not, whichever are more:
    neither a flood of new connections nor a stock of idle ones drives out the others. File descriptors stand for
    connections.
    """

    def __init__(self, limit: int, client_share: float) -> None:
        self.limit = limit
        self.client_limit = ceil(limit * client_share)
        self._clients: dict[int, str] = {}
        # the one that has waited longest is the first
        self._new: dict[int, socket.socket] = {}
        self._answered: dict[int, socket.socket] = {}
        self._cut: set[int] = set()  # those that are not closed yet
        self._counts = Counter[str]()

    @property
    def is_busy(self) -> bool:
        """Whether so many connections are being closed that new ones had better wait."""
        return len(self._cut) >= MAX_CLOSING

    def admit(self, connection: socket.socket, host: str) -> bool:
        """Whether there is room for a connection from this address, which counts and waits from now on."""
        client = client_of(host)
        if self._counts[client] >= self.client_limit and not self._make_room(client):
            return False
        if len(self._clients) >= self.limit and not self._make_room(None):
            return False
        self._counts[client] += 1
        self._clients[connection.fileno()] = client
        self._new[connection.fileno()] = connection
        return True

    def wait(self, descriptor: int, connection: socket.socket) -> None:
        """The connection, which was answered, waits for its client again."""
        if descriptor in self._clients:
            self.work(descriptor)
            self._answered[descriptor] = connection

    def work(self, descriptor: int) -> None:
        """The connection has a request to answer."""
        self._new.pop(descriptor, None)
        self._answered.pop(descriptor, None)

    def end(self, descriptor: int) -> None:
        """The connection is closed."""
        self._cut.discard(descriptor)
        self._forget(descriptor)

    def _forget(self, descriptor: int) -> None:
        self.work(descriptor)
        client = self._clients.pop(descriptor, None)
        if client is not None:
            self._counts[client] -= 1
            if not self._counts[client]:
                del self._counts[client]

    def _make_room(self, client: str | None) -> bool:
        """Whether a waiting connection of the client, or of any, could be cut."""
        new, answered = (
            [each for each in waiting.items() if client in (None, self._clients[each[0]])]
            for waiting in (self._new, self._answered)
        )
        longest = new if len(new) >= len(answered) else answered
        if not longest:
            return False
        descriptor, connection = longest[0]
        self._forget(descriptor)
        self._cut.add(descriptor)
        with suppress(OSError):  # it may be broken already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.shutdown(socket.SHUT_RDWR)
        return True


class Listener(socket.socket):
    """A listening socket that accepts the connections that are admitted, and closes others without a word.

    Where the process has no file descriptor left, it gives up a spare one, so that the waiting connection can be taken
    and closed. asyncio would write thousands of errors instead, and leave it waiting.
    """

    def __init__(self, listening: socket.socket, connections: Connections) -> None:
        super().__init__(fileno=listening.detach())
        self.connections = connections
        self._spare: int | None = _spare()

    def listen(self, _: int = 0) -> None:
        """Lets connections wait, more than asyncio accepts at once: the system drops others, whose clients wait 1 s."""
        super().listen(MAX_WAITING)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next admitted connection; BlockingIOError when there is none."""
        for _ in range(MAX_REFUSALS):
            if self.connections.is_busy:
                break
            try:
                connection, address = super().accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or self._spare is None:
                    raise
                self._refuse()
                continue
            if self.connections.admit(connection, address[0]):
                return connection, address
            connection.close()
        raise BlockingIOError(errno.EAGAIN, "new connections wait until others are closed")

    def close(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        super().close()

    def _refuse(self) -> None:
        assert self._spare is not None
        os.close(self._spare)
        self._spare = None
        try:
            super().accept()[0].close()
        finally:
            self._spare = _spare()


def _spare() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def most_connections(wanted: int) -> int:
    """How many of the wanted connections the limit of file descriptors leaves room for; ValueError if for none."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = descriptors - len(os.listdir("/dev/fd")) - RESERVED_DESCRIPTORS
    if room < 2:
        raise ValueError(
            f"the limit of open files must leave room for connections: got {descriptors}; raise it with `ulimit -n`"
        )
    return min(wanted, room)
