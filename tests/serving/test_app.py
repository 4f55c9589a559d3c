"""The service as its users meet it: a real process, asked over loopback."""

import base64
import hashlib
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil
import pytest
from onnx import numpy_helper
from PIL import Image, ImageDraw

from serving import app, body
from stages.core.deploy.onnx_model import OnnxModel
from tests.conftest import PROJECT, Clone, wait_for
from tests.serving.conftest import (
    DIGITS,
    PLACES,
    Service,
    altered,
    bar,
    enlarged,
    serving,
    set_metadata,
    start,
    write_places_model,
)

FORM, JSON = "multipart/form-data; boundary=x", "application/json"
EXTENT = ["--max-examples", "40", "--generation-deterministic"]
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


def test_pictures_of_any_kind(service: Service) -> None:
    assert labels(post(service, picture(SEVEN))) == ["7"]
    assert labels(post(service, picture(SEVEN, ink="white", paper="navy"))) == ["7"]
    assert labels(post(service, picture(ONE, "JPEG"), "image/jpeg")) == ["1"]
    assert labels(post(service, picture(ONE), "IMAGE/PNG; charset=binary")) == ["1"]


def test_a_form_with_several_pictures(service: Service) -> None:
    files = [("files", (f"{index}.png", picture(strokes))) for index, strokes in enumerate((ONE, SEVEN, SEVEN, ONE))]
    assert labels(service.client.post("/predict", files=files)) == ["1", "7", "7", "1"]
    nameless = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + picture(SEVEN) + b"\r\n--x--\r\n"
    assert labels(post(service, nameless, "multipart/form-data; boundary=x")) == ["7"]


def test_pixels_get_what_the_model_answers_to_them(service: Service) -> None:
    model = OnnxModel(DIGITS)
    brightness_N11 = np.linspace(0.05, 1, 256)[:, None, None]
    images_NHW = (brightness_N11 * np.random.default_rng(1).integers(256, size=(256, 28, 28))).astype(np.uint8)
    answer = service.client.post("/predict", params={"images": True}, json={"images": images_NHW.tolist()})
    _, probabilities_NK = model.run(images_NHW[:, None])
    assert answer.json()["model"] == model.sha256
    for image_HW, expected_K, found in zip(images_NHW, probabilities_NK, answer.json()["predictions"], strict=True):
        assert found["image"] == image_HW.tolist()
        assert [*found["probabilities"]] == model.classes
        np.testing.assert_allclose([*found["probabilities"].values()], expected_K, atol=1e-5)
        assert found["label"] == model.classes[expected_K.argmax()]
        assert found["confidence"] == max(found["probabilities"].values())
        assert found["unsure"] == (expected_K.max() < model.unsure_below)
    assert {found["unsure"] for found in answer.json()["predictions"]} == {False, True}


def test_what_the_model_was_given_is_answered_on_demand_alone(service: Service) -> None:
    (given,) = post(service, picture(SEVEN), images=True).json()["predictions"]
    image_HW = np.array(given["image"])
    assert image_HW.shape == (28, 28)
    assert image_HW.max() == 255
    rows, columns = np.nonzero(image_HW > 40)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20, 21)
    (plain,) = post(service, picture(SEVEN)).json()["predictions"]
    assert plain == {name: value for name, value in given.items() if name != "image"}


def form(field: str, count: int = 1, end: str = "--", content: bytes = picture(ONE)) -> bytes:
    part = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"\r\n\r\n'.encode() + content
    return b"\r\n".join([part] * count) + f"\r\n--x{end}".encode()


def in_json(content: object) -> bytes:
    return json.dumps(content).encode()


def pixels(value: object = 0, height: int = 28, width: int = 28, count: int = 1) -> dict[str, Any]:
    return {"images": [[[value] * width for _ in range(height)] for _ in range(count)]}


def blank_after(image: list[list[int]]) -> dict[str, Any]:
    return {"images": [image, *pixels(200)["images"]]}


PNG = {"Content-Type": "image/png"}


def huge(side: int) -> bytes:
    picture = Image.new("1", (side, side))
    picture.paste(1, (side // 4, side // 4, side // 2, side // 2))
    return encoded(picture)


def many_pixels() -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + huge(5000) + b"\r\n"
    return part * 3 + b"--x--\r\n"


WRONG: dict[str, tuple[str, bytes, int, str]] = {
    "no kind": ("", b"", 415, "Content-Type is 'missing', allowed are image/png, image/jpeg, image/webp"),
    "another kind": ("text/plain", b"7", 415, "'text/plain'"),
    "nothing": ("image/png", b"", 422, "the picture is no picture: it is empty"),
    "no picture": ("image/jpeg", b"seven", 422, "none of PNG, JPEG, WEBP, GIF, BMP, TIFF"),
    "half a picture": ("image/png", picture(ONE)[:100], 422, "the picture cannot be read: "),
    "a picture too large": ("image/png", huge(7100), 422, "7,100 x 7,100 pixels, allowed are 50,000,000"),
    "too large together": (FORM, many_pixels(), 422, "have 75,000,000 pixels, allowed are"),
    "too long": ("image/png", b"x" * 16_000_001, 413, "more than the 16,000,000 bytes that are allowed"),
    "no boundary": ("multipart/form-data", form("files"), 400, "the form is refused"),
    "another field": (FORM, form("file"), 422, "field 'file' is refused, allowed is 'files'"),
    "no form": (FORM, b"seven", 400, "the form is refused"),
    "an empty form": (FORM, b"--x--\r\n", 422, "has no field 'files'"),
    "half a form": (FORM, form("files")[:100], 422, "or no end"),
    "too many files": (FORM, form("files", 257), 422, "more than the 256 files"),
    "no JSON": (JSON, b"seven", 422, "the body: Invalid JSON"),
    "JSON in Latin-1": (JSON, b'{"images": "\xe9"}', 422, "Invalid JSON"),
    "deep JSON": (JSON, b"[" * 100_000, 422, "Invalid JSON"),
    "no images": (JSON, b"{}", 422, "images: Field required"),
    "another name": (JSON, in_json(pixels() | {"image": 1}), 422, "image: Extra inputs"),
    "an empty batch": (JSON, b'{"images": []}', 422, "images: List should have at least 1 item"),
    "a large batch": (JSON, in_json(pixels(count=257)), 422, "at most 256 items"),
    "a large pixel": (JSON, in_json(pixels(256)), 422, "less than or equal to 255"),
    "a negative pixel": (JSON, in_json(pixels(-1)), 422, "greater than or equal to 0"),
    "a broken pixel": (JSON, in_json(pixels(0.5)), 422, "multiple of 1"),
    "a pixel that is none": (JSON, in_json(pixels(float("nan"))), 422, "images.0.0.0"),
    "a pixel as text": (JSON, in_json(pixels("7")), 422, "a valid number"),
    "a pixel as truth": (JSON, in_json(pixels(True)), 422, "a valid number"),
    "another size": (JSON, in_json(pixels(height=20)), 422, "allowed are 28 rows of 28 pixels"),
    "ragged rows": (JSON, in_json({"images": [[[0] * 28, [0] * 27] * 14]}), 422, "27 or 28"),
    "millions of errors": (JSON, in_json(pixels(-1, 1000, 1000, 3)), 422, "greater than or equal to 0"),
    "a blank picture": ("image/png", EMPTY_PAGE, 422, "the picture is blank; there is nothing to classify"),
    "a blank picture in a form": (FORM, form("files", content=EMPTY_PAGE), 422, "a.png is blank"),
    "blank pixels": (JSON, in_json(blank_after([[0, 255] * 14] * 28)), 422, "images.1: is blank"),
    "no rows": (JSON, b'{"images": [[]]}', 422, "0 rows of no pixels, allowed are 28"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told_what_is_wrong(service: Service, case: str) -> None:
    kind, content, status, message = WRONG[case]
    answer = post(service, content, kind) if kind else service.client.post("/predict", content=content)
    assert (answer.status_code, message in answer.json()["detail"]) == (status, True), answer.text


def test_wrong_requests(service: Service) -> None:
    assert post(service, picture(ONE), images="perhaps").json()["detail"].startswith("query.images: Input should be")
    assert service.client.get("/predict").status_code == 405
    assert service.client.get("/docs").status_code == 404


def test_the_length_is_limited_where_no_length_is_told(service: Service) -> None:
    def long() -> Iterator[bytes]:
        for _ in range(400):
            yield b"x" * 100_000

    answer = service.client.post("/predict", content=long(), headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.headers["Connection"]) == (413, "close")
    assert answer.request.headers["Transfer-Encoding"] == "chunked"


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


@pytest.mark.slow
def test_overload_is_answered_at_once(tmp_path: Path) -> None:
    """A body that is half sent takes only the room of its bytes, and /health is always answered."""
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
        refused = [answer for answer in answers if answer.status_code == 503]
        assert 0 < len(refused) < 8
        assert {answer.status_code for answer in answers} == {200, 503}
        for answer in refused:
            assert answer.json() == {"detail": "too many requests are under way; try again in 1 s"}
            assert answer.headers["Retry-After"] == "1"
        counted = f'requests_total{{path="/predict",status="503"}} {len(refused)}.0'
        assert counted in service.client.get("/metrics").text
        assert len(service.output().splitlines()) == 1
        assert labels(post(service, picture(ONE))) == ["1"]


def test_head_is_answered_like_get(service: Service) -> None:
    for path in ("/", "/health", "/model"):
        answer = service.client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["Content-Type"] == service.client.get(path).headers["Content-Type"]
    assert service.client.head("/nothing").status_code == 404


@pytest.mark.slow
def test_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    """End the service while some requests are half sent and others are being answered."""
    with serving(tmp_path, limits="app.GRACE_S = 1") as service, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(service, HEAD + b"half"))
        content = huge(7000)
        head = HEAD.replace(b"1000", str(len(content)).encode())
        for _ in range(8):
            stack.enter_context(connect(service, head + content))
        service.client.get("/health")
        assert service.end() == 130
        assert "Traceback" not in service.output()


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


def test_the_page_allows_what_stands_in_it_and_nothing_else(service: Service) -> None:
    answer = service.client.get("/")
    rules = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    script = re.search("<script>(.*)</script>", answer.text, re.DOTALL)
    assert script
    sha256 = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{sha256}'"
    assert not [rule for rule in rules.values() if "unsafe" in rule or "*" in rule or "http" in rule]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_what_is_not_ink_is_neither_moved_nor_inverted(tmp_path: Path) -> None:
    model = OnnxModel(write_places_model(tmp_path / "places.onnx"))
    for place, label in enumerate(PLACES):
        for light in (0, 60):
            small = bar(place) + np.uint8(light)
            answers = [
                app.answer(model, body.Body(encoded(Image.fromarray(image)), "image/png", None), True).predictions[0]
                for image in (small, enlarged(small))
            ]
            assert [answer.label for answer in answers] == [label, label]
            assert answers[0] == answers[1]
            assert answers[0].image == small.tolist()


def test_facts_of_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts/metrics"
    with serving(tmp_path) as service:
        model, facts = OnnxModel(DIGITS), service.client.get("/model").json()
        assert facts["metrics"] == {}
        assert (facts["sha256"], facts["classes"]) == (model.sha256, model.classes)
        assert (facts["unsure_below"], facts["image_shape"]) == (model.unsure_below, [1, 28, 28])
        assert (facts["recipe"], facts["dataset"], facts["centre_ink"]) == ("convnet", "mnist", True)
        assert facts["data_sha256"] == model.metadata["data_sha256"]
        assert facts["operators"]["Conv"] == 3
        folder.mkdir()
        (folder / "evaluation.json").write_text('{"accuracy": 0.99, "loss": NaN}')
        (folder / "parity.json").write_text('{"half": ')
        assert service.client.get("/model").json()["metrics"] == {"evaluation": {"accuracy": 0.99, "loss": None}}


def test_whether_the_model_is_proven(tmp_path: Path) -> None:
    report = tmp_path / "artifacts/details/parity.json"
    report.parent.mkdir(parents=True)
    with serving(tmp_path) as service:

        def proven() -> set[bool]:
            return {service.client.get(path).json()["proven"] for path in ("/model", "/health")}

        assert proven() == {False}
        sha256 = OnnxModel(DIGITS).sha256
        for onnx_sha256, passed in ((sha256, False), (sha256[::-1], True)):
            report.write_text(json.dumps({"proven": passed, "made_from": {"onnx": onnx_sha256}}))
            assert proven() == {False}
        report.write_text(json.dumps({"proven": True, "made_from": {"onnx": sha256}}))
        assert proven() == {True}


def test_metrics_count(own_service: Service) -> None:
    post(own_service, picture(ONE))
    post(own_service, picture(SEVEN))
    post(own_service, b"")
    own_service.client.get("/some/path/that/is/not")
    text = own_service.client.get("/metrics").text
    sha256 = OnnxModel(DIGITS).sha256
    for line in (
        'requests_total{path="/predict",status="200"} 2.0',
        'requests_total{path="/predict",status="422"} 1.0',
        'requests_total{path="none",status="404"} 1.0',
        'request_seconds_count{path="/predict"} 3.0',
        'images_total{label="1",unsure="false"} 1.0',
        'images_total{label="7",unsure="false"} 1.0',
        f'model_info{{dataset="mnist",recipe="convnet",sha256="{sha256}"}} 1.0',
    ):
        assert line in text.splitlines(), text


def break_weights(model: onnx.ModelProto) -> None:
    weights = model.graph.initializer[0]
    broken = np.full_like(numpy_helper.to_array(weights), np.nan)
    weights.CopyFrom(numpy_helper.from_array(broken, weights.name))


def make_sigmoid(model: onnx.ModelProto) -> None:
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type = "Sigmoid"
    del softmax.attribute[:]


def mix_the_batch(model: onnx.ModelProto) -> None:
    """Subtract the mean over the batch from the logits."""
    nodes = [*model.graph.node]
    index, last = next((index, node) for index, node in enumerate(nodes) if "logits" in node.output)
    last.output[:] = ["own"]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "batch_axis"))
    mean = onnx.helper.make_node("ReduceMean", ["own", "batch_axis"], ["mean"])
    mixed = onnx.helper.make_node("Sub", ["own", "mean"], ["logits"])
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: index + 1], mean, mixed, *nodes[index + 1 :]])


REFUSED = {
    "empty": (b"", "is no valid ONNX file"),
    "half": (DIGITS.read_bytes()[:20_000], "is no valid ONNX file"),
    "not a number": (altered(break_weights), "not every image gets a finite logit"),
    "no probabilities": (altered(make_sigmoid), "its probabilities are not the softmax of its logits"),
    "mixed": (altered(mix_the_batch), "an image alone gets another answer than in a batch"),
    "no classes": (altered(lambda model: model.ClearField("metadata_props")), "was not written by stage 'export'"),
    "other classes": (altered(set_metadata(classes='["0", "1"]')), "allowed is image"),
    "no list of classes": (altered(set_metadata(classes="5")), "classes is no list of names"),
}


@pytest.mark.slow
def test_a_new_model_is_served_under_load_and_a_bad_one_is_not(own_service: Service) -> None:
    old = OnnxModel(DIGITS).sha256
    answers: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=own_service.url) as client:
            while not stop.is_set():
                content = client.post("/predict", content=picture(SEVEN), headers={"Content-Type": "image/png"})
                (prediction,) = content.json()["predictions"]
                answers.append((content.status_code, content.json()["model"] + prediction["label"]))

    def health() -> Any:
        return own_service.client.get("/health").json()

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        assert (health()["status"], health()["model"], health()["refused"]) == ("ok", old, None)
        own_service.model.unlink()
        wait_for(lambda: health()["refused"] == "artifacts/onnx/model.onnx is missing", 60, "a note that it is missing")
        for content, reason in REFUSED.values():
            own_service.replace_model(content)
            wait_for(lambda reason=reason: reason in (health()["refused"] or ""), 60, reason)  # type: ignore[misc]
            assert (health()["status"], health()["model"]) == ("model refused", old)
            assert reason in own_service.output()
        content = altered(set_metadata(classes=json.dumps([*"abcdefghij"]), recipe="other"))
        new = hashlib.sha256(content).hexdigest()
        own_service.replace_model(content)
        wait_for(lambda: health()["model"] == new, 60, "the new model")
        assert (health()["status"], health()["refused"]) == ("ok", None)
        assert 'recipe="other"' in own_service.client.get("/metrics").text
        assert 'recipe="convnet"' not in own_service.client.get("/metrics").text
        time.sleep(0.2)
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert set(answers) == {(200, f"{old}7"), (200, f"{new}h")}
    assert f"model {new[:12]} is served" in own_service.output()


def test_a_model_of_another_size(own_service: Service) -> None:
    """What pixels are taken is told by the API's description, of the model that is served."""
    schema = own_service.client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
    image = schema["application/json"]["schema"]["properties"]["images"]["items"]
    assert (image["minItems"], image["items"]["maxItems"]) == (28, 28)
    (example,) = schema["application/json"]["examples"].values()
    assert labels(own_service.client.post("/predict", json=example["value"])) == ["1"]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_asked_to(own_service: Service, by: signal.Signals) -> None:
    assert labels(post(own_service, picture(ONE))) == ["1"]
    status = own_service.end(by)
    assert status == (130 if by == signal.SIGINT else -signal.SIGTERM)
    assert "Traceback" not in own_service.output()


def test_it_listens_on_loopback_alone(service: Service) -> None:
    listening = [c.laddr.ip for c in psutil.Process(service.process.pid).net_connections() if c.status == "LISTEN"]
    assert listening == ["127.0.0.1"]


def test_a_port_that_is_taken(service: Service, tmp_path: Path) -> None:
    shutil.copytree(service.model.parent, tmp_path / "artifacts/onnx")
    port = service.url.rsplit(":", 1)[1]
    (line,) = failure(tmp_path, "--port", port).splitlines()
    assert line.startswith(f"serving: error: 127.0.0.1, port {port}: Address already in use")
    assert "port 70000" in failure(tmp_path, "--port", "70000")
    assert "no.such.host.invalid, port 0:" in failure(tmp_path, "--host", "no.such.host.invalid")


def test_no_model(tmp_path: Path) -> None:
    missing = "artifacts/onnx/model.onnx not found: run the pipeline first, with `make run`"
    assert failure(tmp_path) == f"serving: error: {missing}\n"
    path = tmp_path / "artifacts/onnx/model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(REFUSED["not a number"][0])
    expected = "artifacts/onnx/model.onnx does not work: not every image gets a finite logit for each class"
    assert failure(tmp_path) == f"serving: error: {expected}\n"


def failure(folder: Path, *options: str) -> str:
    """The output of a service that does not start."""
    process = start(folder, folder / "service.log", *options)
    assert process.wait(timeout=60) == 1
    return (folder / "service.log").read_text()


def test_pytorch_is_not_imported() -> None:
    heavy = "{'torch', 'torchvision', 'tensordict', 'polars', 'pandera', 'prefect', 'dvc'}"
    code = f"import serving.app, sys; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "[]\n"


def test_what_a_request_holds_is_not_logged(own_service: Service) -> None:
    secret = "hunter2-hunter2"
    headers = {"Authorization": f"Bearer {secret}", "Cookie": secret}
    part = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{secret}"\r\n'
    odd = f"Content-Transfer-Encoding: {secret}\r\n\r\n{secret}\r\n--x--\r\n"
    for kind, content in {
        "image/png": secret.encode(),
        "application/json": f'{{"{secret}": 1}}'.encode(),
        "multipart/form-data; boundary=x": (part + odd).encode(),
        f"text/{secret}": b"",
    }.items():
        answer = own_service.client.post(
            "/predict", content=content, headers={"Content-Type": kind, **headers}, params={"key": secret}
        )
        assert answer.is_client_error
    own_service.client.get(f"/{secret}")
    host, port = own_service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"{secret}\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 400")
    own_service.end()
    assert secret not in own_service.output()


@pytest.mark.slow
def test_what_openapi_says_holds(service: Service, tmp_path: Path) -> None:
    """schemathesis sends what the description allows and what it does not, and finds nothing wrong in the answers."""
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json", "--no-color", *EXTENT],
        cwd=tmp_path,
        env=Clone.environment({"SCHEMATHESIS_HOOKS": "tests.serving.pictures", "PYTHONPATH": str(PROJECT)}),
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "No issues found" in done.stdout


def test_answers_are_sent_at_once() -> None:
    with app.listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
