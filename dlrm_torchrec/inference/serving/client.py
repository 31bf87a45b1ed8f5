"""Reads a client's request within limits of size and time, and notices when the client hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")


async def read_body(request: Request, max_bytes: int, timeout_s: float, hold: Callable[[int], None]) -> bytes:
    """The body; HTTPException 413 as soon as it is or will be too large, and 408 when it takes too long.

    ``hold`` is called with the number of bytes that have arrived, because what is only announced takes no memory.
    """
    body = bytearray()
    if int(request.headers.get("content-length", 0)) > max_bytes:  # the server has checked that it is a number
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                if len(body) + len(part) > max_bytes:
                    raise _too_large(max_bytes)
                hold(len(part))
                body += part
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
