"""The process of a server: its socket, its signals, and its idle connections."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import h11
import uvicorn
from prometheus_client import disable_created_metrics
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from dlrm_torchrec.inference.loading import PackageError
from dlrm_torchrec.inference.serving.app import Service
from dlrm_torchrec.inference.serving.connections import Connections, Listener, most_connections
from dlrm_torchrec.inference.serving.limits import ServingConfig

SHUTDOWN_S = 30  # the longest time to answer open requests after SIGTERM
BACKLOG = 128  # connections that are accepted at once
MAX_HEAD_BYTES = 65_536
FREE_PIECES, BYTES_PER_PIECE = 1024, 256  # of a body
READ_BYTES = 16_384  # of a connection at once; asyncio reads up to 256 KiB, which may be many pieces
SWITCH_S = 1e-3  # how long a thread that encodes a large request may keep others waiting, which is 5 ms by default


class Parser(h11.Connection):
    """HTTP/1.1 that refuses a body in very many small pieces, since each takes as long as some hundred bytes."""

    _pieces = _bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > FREE_PIECES + self._bytes / BYTES_PER_PIECE:
                raise h11.RemoteProtocolError("the body must come in larger pieces")
        return event


class Protocol(H11Protocol):
    """A connection that is closed if the complete head of the next request does not arrive in time.

    uvicorn's own limit starts only after a first answer, and ends with the next byte.
    """

    open: Connections  # of all protocols of a server, which makes a subclass of its own
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = Parser(h11.SERVER, options["config"].h11_max_incomplete_event_size or MAX_HEAD_BYTES)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.max_size = READ_BYTES
        self._socket = transport.get_extra_info("socket")
        self._descriptor = self._socket.fileno()
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle and not self.cycle.more_body and not self.cycle.response_complete:
            self.open.work(self._descriptor)

    def on_response_complete(self) -> None:
        self.open.wait(self._descriptor, self._socket)
        self._expect_request()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.open.end(self._descriptor)
        # uvicorn keeps its own timer, and with it all of a connection, if the client has reset that
        for timer in (self._timer, self.timeout_keep_alive_task):
            if timer:
                timer.cancel()

    def _expect_request(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(self.timeout_keep_alive, self._hang_up_after, self.cycle)

    def _hang_up_after(self, cycle: object) -> None:
        if self.cycle is cycle:  # no new request has begun
            self.timeout_keep_alive_handler()


def serve(path: Path, config: ServingConfig) -> None:
    """Serves until SIGTERM or SIGINT, then answers open requests; OSError or PackageError when it cannot start."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # they would add an unused series to every metric
    # torch warns from 2.14 on that TorchScript is deprecated; LOG.md says why we use it
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    sys.setswitchinterval(SWITCH_S)
    service = Service(path, config)
    connections = Connections(most_connections(config.max_connections), config.client_share)
    failures: list[BaseException] = []

    async def first_load() -> None:
        served = await service.models.load()
        gc.collect()
        gc.freeze()  # else each collection looks at all that torch has imported, and nothing else is done meanwhile
        print(f"serving {served.name} at {url}", flush=True)

    async def reload() -> None:
        try:
            served = await service.models.load()
        except PackageError as error:
            print(f"reload: {error} (the server keeps serving the previous package)", file=sys.stderr, flush=True)
        else:
            print(f"reload: serving {served.name}", flush=True)

    def end_if_failed(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            failures.append(error)
            server.should_exit = True

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        tasks = {loop.create_task(work) for work in (service.batcher.run(), first_load())}
        for task in tasks:
            task.add_done_callback(end_if_failed)

        def reload_soon() -> None:
            tasks.add(task := loop.create_task(reload()))
            task.add_done_callback(tasks.discard)

        loop.add_signal_handler(signal.SIGHUP, reload_soon)
        yield
        for task in tasks:
            task.cancel()

    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    created = socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    with Listener(created, connections) as listening:
        # asyncio sets this only for sockets that it opens; without it, an answer waits 40 ms for an ACK
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port = listening.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        server = uvicorn.Server(
            uvicorn.Config(
                service.app(lifespan),
                http=type("ServerProtocol", (Protocol,), {"open": connections}),
                backlog=BACKLOG,
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=config.timeout_s,
                timeout_graceful_shutdown=SHUTDOWN_S,
            )
        )
        with _signals_ignored():
            server.run(sockets=[listening])
    if failures:
        raise failures[0]


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Ignores SIGTERM and SIGINT, which uvicorn raises again after a clean end, so that the process is not killed."""
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
