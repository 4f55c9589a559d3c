"""Receive the body of a request, within limits on its size, its time and the memory of all bodies together."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NamedTuple

from fastapi import HTTPException, Request
from python_multipart.multipart import parse_options_header

from stages.core.examples.picture import FORMATS

MAX_BODY = 16_000_000  # bytes
MAX_READ = 3 * MAX_BODY  # bytes read of a body that is too long, because most clients send all of it before they read
MAX_HELD = 64 * MAX_BODY  # bytes of the bodies of all open requests together
RETRY_S = 1  # seconds after which a client that got 503 may try again
BODY_S = 30.0  # seconds within which a body must arrive
PICTURES = tuple(f"image/{name.lower()}" for name in FORMATS)
FORM, JSON = "multipart/form-data", "application/json"


class Body(NamedTuple):
    """Hold a complete body."""

    content: bytes
    kind: str
    boundary: bytes | None  # between the parts of a form


class Room:
    """Limit the memory for all bodies together; raise `HTTPException` when it is used up."""

    def __init__(self) -> None:
        self.left = MAX_HELD

    def take(self, size: int) -> None:
        if size > self.left:
            problem = f"too many requests are under way; try again in {RETRY_S} s"
            raise HTTPException(503, problem, {"Retry-After": str(RETRY_S), "Connection": "close"})
        self.left -= size


@asynccontextmanager
async def received(request: Request, room: Room) -> AsyncGenerator[Body]:
    """Yield a body of an allowed kind; raise `HTTPException` if it is too long or too slow, or if there is no room.

    While it arrives, a body takes only as much room as the bytes received so far, so that slow clients do not shut
    others out. Once complete, it takes the room of the largest body, which keeps the queue of waiting requests short
    enough for clients to wait in. The bytes are counted because Content-Length may be wrong or missing. The connection
    is closed when a body is rejected, because an endless body would continue after the response.
    """
    found, options = parse_options_header(request.headers.get("content-type"))
    kind = found.decode("latin-1")
    if kind not in (allowed := (*PICTURES, FORM, JSON)):
        problem = f"Content-Type is {kind or 'missing'!r}, allowed: {', '.join(allowed)}"
        raise HTTPException(415, problem, {"Connection": "close"})
    content, size, taken = bytearray(), 0, 0
    try:
        try:
            async with asyncio.timeout(BODY_S):
                async for piece in request.stream():
                    size += len(piece)
                    if size <= MAX_BODY:
                        room.take(len(piece))
                        taken = size
                        content += piece
                    elif size > MAX_READ:
                        break
        except TimeoutError:
            problem = f"the body did not arrive within the allowed {BODY_S:g} s"
            raise HTTPException(408, problem, {"Connection": "close"}) from None
        if size > MAX_BODY:
            problem = f"the body has more than the allowed {MAX_BODY:,} bytes"
            raise HTTPException(413, problem, {"Connection": "close"})
        room.take(MAX_BODY - size)
        taken = MAX_BODY
        yield Body(bytes(content), kind, options.get(b"boundary"))
    finally:
        room.left += taken
