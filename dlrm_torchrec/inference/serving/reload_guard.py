"""Who may tell a server to load its package again, or a delta."""

from __future__ import annotations

import hmac
import json
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request

HERE = ("localhost", "127.0.0.1", "::1")
FORWARDED = ("forwarded", "x-forwarded-for", "via")  # headers by which a proxy says that somebody else asks


def read_token(path: str) -> str:
    """The token in a file; empty without a path. Raises OSError, or ValueError if it could be guessed."""
    if not path:
        return ""
    token = Path(path).read_text(encoding="utf-8").strip()
    if len(token) < 16 or not token.isascii():
        raise ValueError(
            f"{path} must hold a token of at least 16 ASCII characters: got {len(token)} characters; write such as "
            "`openssl rand -hex 16` prints"
        )
    return token


def check_may_reload(request: Request, token: str) -> None:
    """HTTPException 403 unless the request has the token or, where there is none, comes from this machine.

    Pages that a browser shows on this machine come from elsewhere, as their Origin or the name in Host says.
    """
    headers = request.headers
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host"):
        raise HTTPException(403, "a reload must not come from a page of another site: got another Origin than Host")
    if token:
        given = headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise HTTPException(403, "a reload must have the header 'Authorization: Bearer TOKEN': got another or none")
        return
    client = request.client.host if request.client else ""
    if not _is_here(client) or _name(headers.get("host", "")) not in HERE or any(name in headers for name in FORWARDED):
        raise HTTPException(
            403, "a reload must come from this machine: got another; start the server with --reload-token-file"
        )


def read_path(body: bytes) -> Path:
    """The path of a delta in a request's body. HTTPException 400 if it is no object with a text ``path``."""
    try:
        return Path(json.loads(body)["path"])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise HTTPException(400, f'body must be such as {{"path": "deltas/delta-0001"}}: got {error!r}') from error


def check_is_inside(path: Path, folder: Path) -> None:
    """HTTPException 403 unless ``path``, without links, lies in ``folder``; a delta is a program."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise HTTPException(
            403, f"a delta must lie in the served folder: got {path}; start the server with --reload-token-file"
        )


def _is_here(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return bool((getattr(address, "ipv4_mapped", None) or address).is_loopback)


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
