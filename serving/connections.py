"""Close HTTP connections whose clients would keep the service waiting.

Uvicorn limits only the time between two requests on a connection. It does not limit the time until the first request,
the time for headers that arrive byte by byte, or the time for a response that the client does not read. The time for a
body is limited where the body is read, in serving/body.py.
"""

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

WAIT_S = 10.0  # seconds within which a client must send a request's headers, or read what it was sent
CONNECTIONS = 512  # open at once; most systems let a process open 1024 files


class Connection(H11Protocol):
    """Serve one connection, with a time limit on its client."""

    timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.start_timer()
        if len(self.connections) > CONNECTIONS:
            self.make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        super().connection_lost(exc)

    def start_timer(self) -> None:
        self.timer = self.loop.call_later(WAIT_S, self.give_up, self.transport.get_write_buffer_size())

    def give_up(self, unread: int) -> None:
        """Close the connection, unless its client has since read some, but not all, of the `unread` bytes."""
        if 0 < self.transport.get_write_buffer_size() < unread:
            self.start_timer()
        else:
            self.transport.abort()  # close() would wait until the client has read what it was sent.

    def stop_timer_if_answering(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete and not self.flow.write_paused:
            self.timer.cancel()

    def make_room(self) -> None:
        """Close the connection whose client has been silent longest; if none is silent, the slowest to send a body."""
        waiting = (
            connection
            for connection in cast("set[Connection]", self.connections)
            if connection.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not connection.transport.is_closing()
        )

        def turn(connection: Connection) -> tuple[bool, float]:
            return connection.conn.their_state is h11.SEND_BODY, connection.timer.when()

        min(waiting, key=turn).transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        self.stop_timer_if_answering()

    def on_response_complete(self) -> None:
        self.timer.cancel()
        self.start_timer()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.timer.cancel()
        self.start_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stop_timer_if_answering()

    def shutdown(self) -> None:
        super().shutdown()
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()  # Uvicorn would wait for the rest and then log a traceback.
