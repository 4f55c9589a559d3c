"""Test the service as its users see it: as a real process, over loopback."""

import base64
import hashlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from serving import app, body
from stages.core.deploy.onnx_model import OnnxModel
from tests.conftest import PROJECT, Clone
from tests.serving.client import HEAD, ONE, SEVEN, connect, encoded, huge, labels, picture, post
from tests.serving.conftest import DIGITS, PLACES, Service, bar, enlarged, failure, serving, write_places_model

EXTENT = ["--max-examples", "40", "--generation-deterministic"]


def test_pixels_are_answered_as_the_model_answers_them(service: Service) -> None:
    model = OnnxModel(DIGITS)
    brightness_N11 = np.linspace(0.05, 1, 256)[:, None, None]
    images_NHW = (brightness_N11 * np.random.default_rng(1).integers(256, size=(256, 28, 28))).astype(np.uint8)
    answer = service.client.post("/predict", params={"images": True}, json={"images": images_NHW.tolist()})
    _, probabilities_NK = model.run(images_NHW[:, None])
    assert answer.json()["model"] == model.sha256
    for image_HW, expected_K, found in zip(images_NHW, probabilities_NK, answer.json()["predictions"], strict=True):
        assert found["image"] == image_HW.tolist()
        assert [*found["probabilities"]] == model.spec.classes
        np.testing.assert_allclose([*found["probabilities"].values()], expected_K, atol=1e-5)
        assert found["label"] == model.spec.classes[expected_K.argmax()]
        assert found["confidence"] == max(found["probabilities"].values())
        assert found["unsure"] == (expected_K.max() < model.unsure_below)
    assert {found["unsure"] for found in answer.json()["predictions"]} == {False, True}


def test_the_input_of_the_model_is_returned_only_on_demand(service: Service) -> None:
    (given,) = post(service, picture(SEVEN), images=True).json()["predictions"]
    image_HW = np.array(given["image"])
    assert image_HW.shape == (28, 28)
    assert image_HW.max() == 255
    rows, columns = np.nonzero(image_HW > 40)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20, 21)
    (plain,) = post(service, picture(SEVEN)).json()["predictions"]
    assert plain == {name: value for name, value in given.items() if name != "image"}


def test_wrong_requests(service: Service) -> None:
    assert post(service, picture(ONE), images="perhaps").json()["detail"].startswith("query.images: Input should be")
    assert service.client.get("/predict").status_code == 405
    assert service.client.get("/docs").status_code == 404


def test_head_is_answered_like_get(service: Service) -> None:
    for path in ("/", "/health", "/model"):
        answer = service.client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["Content-Type"] == service.client.get(path).headers["Content-Type"]
    assert service.client.head("/nothing").status_code == 404


@pytest.mark.slow
def test_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    """End the service while some requests are half sent and others are being processed."""
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


def test_the_page_allows_its_own_content_and_nothing_else(service: Service) -> None:
    answer = service.client.get("/")
    rules = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    script = re.search("<script>(.*)</script>", answer.text, re.DOTALL)
    assert script
    sha256 = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{sha256}'"
    assert not [rule for rule in rules.values() if "unsafe" in rule or "*" in rule or "http" in rule]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_pictures_without_ink_are_neither_moved_nor_inverted(tmp_path: Path) -> None:
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


def test_the_model_is_described(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts/metrics"
    with serving(tmp_path) as service:
        model, facts = OnnxModel(DIGITS), service.client.get("/model").json()
        assert facts["metrics"] == {}
        assert (facts["sha256"], facts["unsure_below"]) == (model.sha256, model.unsure_below)
        assert facts["spec"] == json.loads(model.spec.model_dump_json())
        assert (facts["spec"]["shape"], facts["spec"]["opening"]["centre_ink"]) == ([1, 28, 28], True)
        assert (facts["recipe"], facts["dataset"]) == ("convnet", "mnist")
        assert facts["data_sha256"] == model.metadata["data_sha256"]
        assert facts["operators"]["Conv"] == 3
        folder.mkdir()
        (folder / "evaluation.json").write_text('{"accuracy": 0.99, "loss": NaN}')
        (folder / "parity.json").write_text('{"half": ')
        assert service.client.get("/model").json()["metrics"] == {"evaluation": {"accuracy": 0.99, "loss": None}}


def test_the_model_is_proven_if_parity_has_recorded_its_checksum(tmp_path: Path) -> None:
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


def test_a_model_of_another_size(own_service: Service) -> None:
    """Check that the description of the API states the image size of the model that is served."""
    schema = own_service.client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
    image = schema["application/json"]["schema"]["properties"]["images"]["items"]
    assert (image["minItems"], image["items"]["maxItems"]) == (28, 28)
    (example,) = schema["application/json"]["examples"].values()
    assert labels(own_service.client.post("/predict", json=example["value"])) == ["1"]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_on_ctrl_c_and_on_sigterm(own_service: Service, by: signal.Signals) -> None:
    assert labels(post(own_service, picture(ONE))) == ["1"]
    status = own_service.end(by)
    assert status == (130 if by == signal.SIGINT else -signal.SIGTERM)
    assert "Traceback" not in own_service.output()


def test_it_listens_only_on_loopback(service: Service) -> None:
    listening = [c.laddr.ip for c in psutil.Process(service.process.pid).net_connections() if c.status == "LISTEN"]
    assert listening == ["127.0.0.1"]


def test_a_port_that_is_taken(service: Service, tmp_path: Path) -> None:
    shutil.copytree(service.model.parent, tmp_path / "artifacts/onnx")
    port = service.url.rsplit(":", 1)[1]
    (line,) = failure(tmp_path, "--port", port).splitlines()
    assert line.startswith(f"serving: error: 127.0.0.1, port {port}: Address already in use")
    assert "port 70000" in failure(tmp_path, "--port", "70000")
    assert "no.such.host.invalid, port 0:" in failure(tmp_path, "--host", "no.such.host.invalid")


def test_neither_pytorch_nor_polars_is_imported() -> None:
    heavy = "{'torch', 'torchvision', 'polars', 'pandera', 'prefect', 'dvc'}"
    code = f"import serving.app, sys; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "[]\n"


def test_the_content_of_a_request_is_not_logged(own_service: Service) -> None:
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
def test_the_service_keeps_to_its_openapi_description(service: Service, tmp_path: Path) -> None:
    """Let Schemathesis send what the description allows and what it does not, and check the responses."""
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
