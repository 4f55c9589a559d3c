"""Test the limits on bodies."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.serving.client import HEAD, ONE, PNG, connect, huge, labels, picture, post
from tests.serving.conftest import Service, serving


def test_the_length_is_limited_if_the_request_does_not_state_it(service: Service) -> None:
    def long() -> Iterator[bytes]:
        for _ in range(400):
            yield b"x" * 100_000

    answer = service.client.post("/predict", content=long(), headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.headers["Connection"]) == (413, "close")
    assert answer.request.headers["Transfer-Encoding"] == "chunked"


@pytest.mark.slow
def test_overload_is_answered_at_once(tmp_path: Path) -> None:
    """Check also that a half-sent body takes only the room of its bytes, and that /health always answers."""
    with serving(tmp_path, limits="body.MAX_HELD = 2 * body.MAX_BODY") as service, ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connect(service, HEAD + b"half"))
        pool, content = stack.enter_context(ThreadPoolExecutor(8)), huge(7000)
        busy = [
            pool.submit(httpx.post, f"{service.url}/predict", content=content, headers=PNG, timeout=60)
            for _ in range(8)
        ]
        while not all(future.done() for future in busy):
            assert service.client.get("/health", timeout=5).json()["status"] == "ok"
        answers = [future.result() for future in busy]
        rejected = [answer for answer in answers if answer.status_code == 503]
        assert 0 < len(rejected) < 8
        assert {answer.status_code for answer in answers} == {200, 503}
        for answer in rejected:
            assert answer.json() == {"detail": "too many requests are under way; try again in 1 s"}
            assert (answer.headers["Retry-After"], answer.headers["Connection"]) == ("1", "close")
        counted = f'requests_total{{path="/predict",status="503"}} {len(rejected)}.0'
        assert counted in service.client.get("/metrics").text
        assert len(service.output().splitlines()) == 1
        assert labels(post(service, picture(ONE))) == ["1"]


def test_an_endless_body_ends_with_the_connection(service: Service) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as endless:
        endless.sendall(head.encode())
        with pytest.raises(ConnectionError):  # noqa: PT012
            for _ in range(200):
                endless.sendall(chunk)
        assert endless.recv(100).startswith(b"HTTP/1.1 413")
    assert labels(post(service, picture(ONE))) == ["1"]


def test_a_client_that_leaves(service: Service) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nhalf"
    with socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(head.encode())
        time.sleep(0.2)
    time.sleep(0.2)
    assert labels(post(service, picture(ONE))) == ["1"]
    assert "Traceback" not in service.output()
