"""The options of a server, in a module of its own so that a command line can show them without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def option(default: Any, help: str, least: float = 1, most: float = 10**9) -> Any:
    return field(default=default, metadata={"help": help, "least": least, "most": most})


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """Where to listen, how to batch, and how much to accept from clients."""

    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on; 0.0.0.0 means all addresses"})
    port: int = option(8000, "port to listen on; 0 means any free port", least=0, most=65_535)
    threads: int = option(1, "threads of the model")
    max_batch_rows: int = option(1024, "largest number of rows in a batch of the model; a larger request runs alone")
    max_delay_ms: float = option(0.0, "how long a request waits for others while the model is free", least=0)
    top: int = option(10, "items that a user gets, if the package ranks items", most=4096)
    max_rows: int = option(4096, "largest number of rows in a request; a larger request gets 413")
    max_request_mb: float = option(8.0, "largest body of a request in MB; a larger body gets 413", least=1e-3)
    max_queued_rows: int = option(16_384, "largest number of rows that wait for an answer; more requests get 503")
    max_values: int = option(
        200_000, "largest number of values in a JSON body, where a key counts as two; Arrow may have five times as many"
    )
    max_text_bytes: int = option(4096, "largest number of bytes in a text; a request with a longer one gets 413")
    max_connections: int = option(512, "largest number of open connections; one more closes the longest idle one")
    client_share: float = option(
        0.5, "largest part of connections, queue and memory that one client address may hold", least=1e-3, most=1
    )
    timeout_s: int = option(10, "seconds for a client to send a request; also closes an idle connection")
    reload_token_file: str = field(
        default="", metadata={"help": "file with the token that POST /reload needs; empty: from this machine only"}
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            if "least" not in each.metadata:
                continue
            value, least, most = getattr(self, each.name), each.metadata["least"], each.metadata["most"]
            if not least <= value <= most:
                raise ValueError(f"{each.name} must be from {least} to {most}: got {value}; change it")
        if self.max_queued_rows * self.client_share < self.max_rows:
            raise ValueError(
                f"max_queued_rows times client_share must be at least max_rows: got {self.max_queued_rows} times "
                f"{self.client_share:g} for requests of up to {self.max_rows}; raise it, or lower max_rows"
            )

    @property
    def max_request_bytes(self) -> int:
        return int(self.max_request_mb * 1e6)
