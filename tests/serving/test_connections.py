"""Test the limits on connections."""

import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import wait_for
from tests.serving.client import HEAD, ONE, connect, is_closed, labels, picture, post
from tests.serving.conftest import serving


@pytest.mark.slow
def test_silent_and_slow_clients_keep_nobody_waiting(tmp_path: Path) -> None:
    with serving(tmp_path, limits="connections.WAIT_S = body.BODY_S = 5") as service, ExitStack() as stack:

        def connections(count: int, sent: bytes = b"") -> list[socket.socket]:
            return [stack.enter_context(connect(service, sent)) for _ in range(count)]

        silent, slow, half = connections(100), connections(100, HEAD[:4]), connections(100, HEAD)
        trickle = {connection: iter(HEAD[4:]) for connection in slow} | {connection: iter(HEAD) for connection in half}
        started = time.monotonic()
        while not all(map(is_closed, (*silent, *slow))):
            assert labels(post(service, picture(ONE))) == ["1"]
            assert time.monotonic() - started < 20
            for connection, rest in trickle.items():
                with suppress(ConnectionError):
                    connection.send(bytes([next(rest)]))
            time.sleep(1)
        assert time.monotonic() - started > 4
        for connection in half:
            connection.settimeout(10)
            answer = connection.recv(1000)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"the body did not arrive within the allowed 5 s" in answer
        assert 'requests_total{path="/predict",status="408"} 100.0' in service.client.get("/metrics").text


@pytest.mark.slow
def test_of_too_many_connections_the_longest_waiting_are_closed(tmp_path: Path) -> None:
    with serving(tmp_path, limits="connections.CONNECTIONS = 10") as service, ExitStack() as stack:
        silent = [stack.enter_context(connect(service)) for _ in range(30)]
        assert labels(post(service, picture(ONE))) == ["1"]
        wait_for(lambda: sum(map(is_closed, silent)) == 21, 10, "room for a request")
        assert [*map(is_closed, silent)] == [True] * 21 + [False] * 9


@pytest.mark.slow
def test_a_client_that_does_not_read_its_answers_is_disconnected(tmp_path: Path) -> None:
    with (
        serving(tmp_path, limits="connections.WAIT_S = 2") as service,
        connect(service, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2000) as deaf,
    ):
        process = psutil.Process(service.process.pid)

        def connected() -> bool:
            return deaf.getsockname() in [c.raddr for c in process.net_connections() if c.raddr]

        wait_for(connected, 30, "a connection")
        wait_for(lambda: not connected(), 30, "its end")
