"""Make requests, and send them to the service."""

import io
import json
import socket
from typing import Any

import httpx
from PIL import Image, ImageDraw

from tests.serving.conftest import Service

FORM, JSON = "multipart/form-data; boundary=x", "application/json"

SEVEN = [(60, 50), (150, 50), (90, 170)]

ONE = [(110, 40), (95, 180)]


def picture(strokes: list[tuple[int, int]], kind: str = "PNG", *, ink: str = "black", paper: str = "white") -> bytes:
    image = Image.new("RGB", (200, 220), paper)
    ImageDraw.Draw(image).line(strokes, ink, width=16, joint="curve")
    return encoded(image, kind)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


EMPTY_PAGE = encoded(Image.new("L", (200, 220), "white"))


def post(service: Service, content: bytes, kind: str = "image/png", **query: Any) -> httpx.Response:
    return service.client.post("/predict", content=content, headers={"Content-Type": kind}, params=query)


def labels(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [prediction["label"] for prediction in answer.json()["predictions"]]


def form(field: str, count: int = 1, end: str = "--", content: bytes = picture(ONE)) -> bytes:
    part = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"\r\n\r\n'.encode() + content
    return b"\r\n".join([part] * count) + f"\r\n--x{end}".encode()


def in_json(content: object) -> bytes:
    return json.dumps(content).encode()


def pixels(value: object = 0, height: int = 28, width: int = 28, count: int = 1) -> dict[str, Any]:
    return {"images": [[[value] * width for _ in range(height)] for _ in range(count)]}


PNG = {"Content-Type": "image/png"}


def huge(side: int) -> bytes:
    picture = Image.new("1", (side, side))
    picture.paste(1, (side // 4, side // 4, side // 2, side // 2))
    return encoded(picture)


def connect(service: Service, sent: bytes = b"") -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(sent)
    return connection


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1000, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
