"""Reads a client's request within limits of size and time, and notices when the client hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")


def announced_bytes(request: Request, max_bytes: int) -> int:
    """The announced length of the body, or ``max_bytes`` without one; HTTPException 413 when it is too large."""
    num_bytes = int(request.headers.get("content-length", max_bytes))  # the server has checked that it is a number
    if num_bytes > max_bytes:
        raise _too_large(max_bytes)
    return num_bytes


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The body; HTTPException 413 as soon as it is too large, and 408 when it takes too long."""
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        message = f"a request must arrive within {timeout_s:g} s: got {len(body)} bytes in that time; send it faster"
        raise HTTPException(408, message, {"Connection": "close"}) from None
    return bytes(body)


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"body must have at most {max_bytes} bytes: got more; split the request")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; if the client hangs up first, cancels the work and raises ClientDisconnect."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # after the body, only a disconnect can come
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
