"""HTTP connections on which no client can keep the service waiting.

uvicorn limits the time between two requests of a connection alone, not the time until the first one or that of a head
that comes byte by byte. How long a body may take is limited where it is read, in serving/body.py.
"""

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # seconds in which a request's head must have come, since the connection or the last answer
CONNECTIONS = 512  # open at once: most systems let a process open 1024 files


class Connection(H11Protocol):
    timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.await_head()
        if len(self.connections) > CONNECTIONS:
            self.make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        super().connection_lost(exc)

    def await_head(self) -> None:
        # abort, for close would wait until the client has read its last answer
        self.timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def make_room(self) -> None:
        """Close the connection whose client has been sending a request, or nothing, for the longest time."""
        waiting = (
            connection
            for connection in cast("set[Connection]", self.connections)
            if connection.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not connection.transport.is_closing()
        )
        min(waiting, key=lambda connection: connection.timer.when()).transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self.timer.cancel()

    def on_response_complete(self) -> None:
        self.await_head()
        super().on_response_complete()

    def shutdown(self) -> None:
        super().shutdown()
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()  # uvicorn would wait for the rest, then cancel the request with a traceback
