"""Which process holds the lock of a run folder, as ``lock.json`` says it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

_MAX_TEXT = 200  # of what is said of a program


@dataclass(frozen=True, kw_only=True)
class Holder:
    """One process that trains, or trained, in a run folder."""

    token: str  # of this holder alone
    pid: int
    host: str
    kernel: str  # processes with the same text see the same process numbers
    born: int  # when the process started, in ticks of its kernel; 0 where that is unknown
    since: str
    program: str
    stopping: bool = False  # it saves and ends
    beat: int = 0

    @property
    def described(self) -> str:
        """Who it is, for people, without control characters."""
        host, since, program = (ascii(text)[1:-1] for text in (self.host, self.since, self.program))
        return f"process {self.pid} on {host}, there since {since} ({program})"

    def is_running(self) -> bool:
        """Whether the process lives; its kernel must be this one."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except (PermissionError, OverflowError):  # another user's process; no process has so large a number
            pass
        return _born(self.pid) == self.born

    def written(self) -> bytes:
        """The content of the file, the inverse of ``read``."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, content: bytes) -> Holder | None:
        """The holder in a file; None if the file is empty or damaged."""
        try:
            holder = cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = {"str": str, "int": int, "bool": bool}
        fits = all(type(getattr(holder, field.name)) is kinds[str(field.type)] for field in fields(cls))
        return holder if fits and holder.pid > 0 else None


def this_process() -> Holder:
    """A new holder: this process, from now on."""
    host = socket.gethostname()
    return Holder(
        token=secrets.token_hex(8),
        pid=os.getpid(),
        host=host,
        kernel=" ".join([host, *_kernel()]),
        born=_born(os.getpid()),
        since=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        program=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:_MAX_TEXT],
    )


def _kernel() -> list[str]:
    """What tells this start of the kernel, and this space of process numbers, from others with the same host name."""
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return parts


def _born(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
