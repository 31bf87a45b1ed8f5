"""What may be set of a server, apart from what it runs on, so that a command line need not import that."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def option(default: Any, help: str, least: float = 1, most: float = 10**9) -> Any:
    return field(default=default, metadata={"help": help, "least": least, "most": most})


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """Where to listen, how to batch, and how much to take from clients."""

    host: str = field(default="127.0.0.1", metadata={"help": "address to listen at; 0.0.0.0: all of this machine's"})
    port: int = option(8000, "0: any that is free", least=0, most=65_535)
    threads: int = option(1, "of the model")
    max_batch_rows: int = option(1024, "requests that wait together run as one batch of at most this many rows")
    max_delay_ms: float = option(0.0, "how long a request waits for others while the model is free", least=0)
    max_rows: int = option(4096, "of a request; 413 beyond")
    max_request_mb: float = option(8.0, "of the body of a request; 413 beyond", least=1e-3)
    max_queued_rows: int = option(16_384, "of all requests together that are not answered yet; 503 beyond")
    timeout_s: int = option(10, "for a client to send a request; an idle connection is closed after it")

    def __post_init__(self) -> None:
        for each in fields(self)[1:]:
            value, least, most = getattr(self, each.name), each.metadata["least"], each.metadata["most"]
            if not least <= value <= most:
                raise ValueError(f"{each.name} must be from {least} to {most}: got {value}; change it")
        if self.max_queued_rows < self.max_rows:
            raise ValueError(
                f"max_queued_rows must be at least max_rows: got {self.max_queued_rows} for requests of up to "
                f"{self.max_rows}; raise it, or lower max_rows"
            )

    @property
    def max_request_bytes(self) -> int:
        return int(self.max_request_mb * 1e6)
