"""A server under attack: what attackers may take away from others, and what they may not."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import resource
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from uvicorn.server import ServerState

from dlrm_torchrec.inference.serving.connections import Connections, Listener, most_connections
from dlrm_torchrec.inference.serving.quota import Quota, client_of
from dlrm_torchrec.inference.serving.reload_guard import check_may_reload, read_token
from dlrm_torchrec.inference.serving.server import Protocol
from tests.inference.serving.served import CITIES, Server, as_json, columns, write

HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("attacked") / "package", "first", CITIES)


@pytest.fixture(scope="module")
def attacked(package: Path) -> Iterator[Server]:
    """A server that has room for 16 connections and may not complain."""
    server = Server(package, "--max-connections", "16", "--client-share", "0.5", "--timeout-s", "60").wait()
    yield server
    assert server.stop()[::2] == (0, "")


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTTP/1.1\r\nX-a", CHUNKED, HEAD + b"Content-Length: 8000000\r\n\r\n{"]
)
def test_connections_that_stay_silent_keep_nobody_out(attacked: Server, sent: bytes) -> None:
    with ExitStack() as held:
        for _ in range(40):
            client = held.enter_context(attacked.socket())
            try:
                client.sendall(sent)
            except ConnectionError:
                assert sent
        for _ in range(5):
            assert attacked.predict(as_json(columns(0, 2)))[0] == 200


def test_a_body_in_tiny_pieces_is_refused(attacked: Server) -> None:
    with attacked.socket() as client:
        client.sendall(CHUNKED + b"1\r\n \r\n" * 10_000)
        assert client.recv(1000).startswith(b"HTTP/1.1 400 ")
    body = as_json(columns(0, 30))
    pieces = iter([body[start : start + 100] for start in range(0, len(body), 100)])
    assert attacked.predict(pieces)[0] == 200


def test_descriptors_run_out_quietly(package: Path) -> None:
    """Where the system has fewer descriptors than connections come, there is no word in the log, and others get in."""
    command = [sys.executable, "-m", "dlrm_torchrec.cli.main", "serve", str(package), "--port", "0"]
    limit = (80, 80)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit),
    )
    server = Server.__new__(Server)
    server.process = process
    server.wait()
    with ExitStack() as held:
        for _ in range(300):
            client = held.enter_context(server.socket())
            try:
                client.sendall(b"GET /healthz HTTP/1.1\r\nX-a")
            except ConnectionError:
                continue
        for _ in range(5):
            assert server.ask("GET", "/healthz")[0] == 200
    assert server.predict(as_json(columns(0, 2)))[0] == 200
    assert server.stop()[::2] == (0, "")


def test_nothing_is_left_of_a_connection_that_its_client_resets() -> None:
    """Timers would keep all of it, and the collector of garbage would stop the server to look at thousands of them."""

    async def answer(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"123456789"})

    async def survivors() -> int:
        http: Any = type("ServerProtocol", (Protocol,), {"open": Connections(4, client_share=1)})
        config = uvicorn.Config(answer, timeout_keep_alive=3600, log_config=None, lifespan="off")
        config.load()
        protocols: list[weakref.ref[Any]] = []

        def connected() -> Any:
            protocol = http(config=config, server_state=ServerState(), app_state={})
            protocols.append(weakref.ref(protocol))
            return protocol

        listening = await asyncio.get_running_loop().create_server(connected, "127.0.0.1", 0)
        address = listening.sockets[0].getsockname()

        def visit() -> None:
            with socket.create_connection(address, timeout=60) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.recv(1)  # what is left unread makes the end a reset

        await asyncio.gather(*(asyncio.to_thread(visit) for _ in range(3)))
        left = len(protocols)
        for _ in range(20):
            await asyncio.sleep(0.1)
            gc.collect()
            left = sum(protocol() is not None for protocol in protocols)
            if not left:
                break
        assert len(protocols) == 3
        listening.close()
        return left

    assert asyncio.run(survivors()) == 0


class Fake:
    """A connection that notes that it was cut, with a reset of its client."""

    def __init__(self, descriptor: int) -> None:
        self.fileno = lambda: descriptor
        self.is_cut = self.will_reset = False

    def setsockopt(self, *option: object) -> None:
        self.will_reset = option == (socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def shutdown(self, _: int) -> None:
        self.is_cut = self.will_reset
        raise OSError("it is broken")


def test_the_longest_waiting_connection_makes_room() -> None:
    connections: Any = Connections(4, client_share=0.5)
    fakes = [Fake(descriptor) for descriptor in range(9)]
    assert all(connections.admit(fakes[i], "10.0.0.1") for i in (0, 1))
    connections.work(0)
    connections.wait(0, fakes[0])  # it was answered, and waits again
    assert connections.admit(fakes[2], "10.0.0.1")
    assert [fake.is_cut for fake in fakes[:3]] == [False, True, False]
    connections.work(0)
    connections.work(2)
    assert not connections.admit(fakes[3], "10.0.0.1")
    assert connections.admit(fakes[3], "10.0.0.2")
    assert connections.admit(fakes[4], "10.0.0.3")
    connections.work(3)
    connections.work(4)
    assert not connections.admit(fakes[5], "10.0.0.4")
    for _ in range(2):
        connections.end(1)
        connections.end(0)
    assert connections.admit(fakes[5], "10.0.0.4")
    assert connections.admit(fakes[6], "10.0.0.5")
    assert fakes[5].is_cut


@pytest.mark.parametrize("flood", ["new", "answered"])
def test_neither_new_nor_idle_connections_drive_out_the_others(flood: str) -> None:
    """A client that asks again and again keeps its connection, and a new client has time to ask."""
    connections: Any = Connections(8, client_share=1)
    good, late = Fake(100), Fake(101)
    assert connections.admit(good, "10.0.0.1")
    for descriptor in range(50):
        connections.work(100)
        connections.wait(100, good)
        assert connections.admit(Fake(descriptor), "10.0.0.2")
        if flood == "answered":
            connections.work(descriptor)
            connections.wait(descriptor, Fake(descriptor))
        if descriptor == 40:
            assert connections.admit(late, "10.0.0.3")
        for cut in list(connections._cut):
            connections.end(cut)
        if descriptor < 43:
            assert not late.is_cut
    assert not good.is_cut
    assert late.is_cut == (flood == "new")


def test_a_flood_of_connections_waits_and_is_not_dropped() -> None:
    """More than asyncio accepts at once; the client of a dropped one tries again only after a second or more."""
    created = socket.create_server(("127.0.0.1", 0))
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    with Listener(created, Connections(512, client_share=1)) as listening, ExitStack() as held:
        listening.listen(10)
        clients = [held.enter_context(socket.socket()) for _ in range(min(400, most))]
        for client in clients:
            client.setblocking(False)
            assert client.connect_ex(listening.getsockname()) in (0, errno.EINPROGRESS)
        assert [client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO) for client in clients] == [1] * len(clients)


def test_a_limit_of_files_without_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (30, 30))
    with pytest.raises(ValueError, match="the limit of open files must leave room for connections: got 30; raise it"):
        most_connections(512)


def test_a_client_holds_its_share_at_most() -> None:
    quota = Quota(10, "bytes", client_share=0.5)
    with quota.holding("a") as hold:
        hold(3)
        hold(2)
        with pytest.raises(HTTPException, match="requests of one client must hold at most 5 bytes: got 5 and 1 more"):
            hold(1)
        with quota.holding("b", 4), pytest.raises(HTTPException, match="must hold at most 10 bytes: got 9 and 2 more"):
            quota.holding("c", 2).__enter__()
    assert quota.held == 0
    with quota.holding("a", 5):
        assert quota.held == 5


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8::1:2", "2001:db8::/64"),
        ("2001:db8::ffff:ffff:ffff:ffff", "2001:db8::/64"),
        ("socket", "socket"),
    ],
)
def test_an_address_stands_for_a_client(host: str, client: str) -> None:
    assert client_of(host) == client


TOKEN = "0123456789abcdef"
RELOADS: list[tuple[str, dict[str, str], str, bool]] = [
    ("127.0.0.1", {"host": "localhost:8000"}, "", True),
    ("::1", {"host": "[::1]:8000"}, "", True),
    ("::ffff:127.0.0.1", {"host": "127.0.0.1", "origin": "http://127.0.0.1"}, "", True),
    ("10.0.0.1", {"host": "localhost:8000"}, "", False),
    ("127.0.0.1", {"host": "evil.example"}, "", False),
    ("127.0.0.1", {"host": "localhost:8000", "origin": "http://evil.example"}, "", False),
    ("127.0.0.1", {"host": "localhost:8000", "origin": "null"}, "", False),
    ("127.0.0.1", {"host": "localhost:8000", "origin": "http://[::1"}, "", False),
    ("127.0.0.1", {"host": "localhost:8000", "x-forwarded-for": "10.0.0.1"}, "", False),
    ("127.0.0.1", {"host": "[::1"}, "", False),
    ("127.0.0.1", {"host": "localhost:8000"}, TOKEN, False),
    ("10.0.0.1", {"host": "models", "authorization": f"Bearer {TOKEN}"}, TOKEN, True),
    ("10.0.0.1", {"host": "models", "authorization": f"Bearer {TOKEN}0"}, TOKEN, False),
    ("10.0.0.1", {"host": "models", "authorization": f"Bearer {TOKEN}", "origin": "http://evil"}, TOKEN, False),
]


@pytest.mark.parametrize(("client", "headers", "token", "may"), RELOADS)
def test_who_may_reload(client: str, headers: dict[str, str], token: str, may: bool) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/reload", "client": (client, 1), "headers": raw}
    if may:
        check_may_reload(Request(scope), token)
        return
    with pytest.raises(HTTPException) as refused:
        check_may_reload(Request(scope), token)
    assert refused.value.status_code == 403


def test_a_page_of_another_site_reloads_nothing(attacked: Server) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        connection = attacked.connect()
        connection.request("POST", "/reload", headers=headers)
        response = connection.getresponse()
        assert response.status == 403
        assert "a reload must" in json.loads(response.read())["error"]
        connection.close()


def test_a_token_is_long_and_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert (read_token(""), read_token(str(tmp_path / "token"))) == ("", TOKEN)
    (tmp_path / "token").write_text("guess\n")
    with pytest.raises(ValueError, match="must hold a token of at least 16 ASCII characters: got 5 characters; write"):
        read_token(str(tmp_path / "token"))
