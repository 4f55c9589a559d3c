"""Run the service as a real process, with a small model that knows MNIST's digits.

digits.onnx is a small convnet, trained and exported by the pipeline of revision ba55462. It classifies 99.30% of the
10,000 test images correctly. The command was
`dvc exp run -S 'recipes.convnet.model.channels=[[8],[16],[32]]' -S recipes.convnet.epochs=8
-S recipes.convnet.augmentation.rotation=12 -S recipes.convnet.augmentation.scale=0.1
-S recipes.convnet.augmentation.shear=6`. The `spec` in its metadata, which that revision did not have, was added to the
file afterwards.
"""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stages.core.examples.spec import Opening, Spec
from tests.conftest import PROJECT, Clone, wait_for

DIGITS = Path(__file__).with_name("digits.onnx")
PLACES = ["high", "middle", "low"]
COLORS = ["red", "green", "blue"]
GREY = Opening(color="grey", resize="stretch", centre_ink=False, max_pixels=1_000_000)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Handle ctrl-C even in the background, where a shell makes its processes, and so the service, ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Service:
    """Run the service in `folder`; it is ready once it has printed its URL."""

    def __init__(self, folder: Path, limits: str = "") -> None:
        self.model, self.log = folder / "artifacts/onnx/model.onnx", folder / "service.log"
        self.process = start(folder, self.log, limits=limits)
        wait_for(lambda: "http://" in self.output() or self.process.poll() is not None, 60, "a ready service")
        assert self.process.poll() is None, self.output()
        self.url = self.output().split("page is at ")[1].split(";")[0]
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def output(self) -> str:
        return self.log.read_text()

    def replace_model(self, content: bytes) -> None:
        """Replace the file as a stage does: remove it, then rename the complete new file into place."""
        self.model.unlink(missing_ok=True)
        partial = self.model.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(self.model)

    def end(self, by: signal.Signals = signal.SIGINT) -> int:
        self.client.close()
        self.process.send_signal(by)
        return self.process.wait(timeout=30)


def start(folder: Path, log: Path, *options: str, limits: str = "") -> subprocess.Popen[bytes]:
    """Start the service; `limits` are Python statements that change its limits."""
    code = f"from serving import app, body, connections\n{limits}\napp.main()"
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-c", code, "--port", "0", *options],
            cwd=folder,
            env=Clone.environment({"PYTHONPATH": str(PROJECT)}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )


def failure(folder: Path, *options: str) -> str:
    """Return the output of a service that does not start."""
    process = start(folder, folder / "service.log", *options)
    assert process.wait(timeout=60) == 1
    return (folder / "service.log").read_text()


@contextmanager
def serving(folder: Path, model: Path = DIGITS, limits: str = "") -> Iterator[Service]:
    """Run a service with its own copy of the model, and end it with ctrl-C if it is still running."""
    path = folder / "artifacts/onnx/model.onnx"
    path.parent.mkdir(parents=True)
    shutil.copy(model, path)
    service = Service(folder, limits)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.end()
    assert "Traceback" not in service.output()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run one service for all tests that do not change it."""
    with serving(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="session")
def color_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run one service with a model of colour images."""
    folder = tmp_path_factory.mktemp("colors")
    with serving(folder, write_colors_model(folder / "colors.onnx")) as running:
        yield running


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as running:
        yield running


def write_model(path: Path, weight_CHWK: NDArray[np.float32], classes: list[str], opening: Opening) -> Path:
    """Write a linear model of raw pixels without a bias."""
    shape, count = weight_CHWK.shape[:3], len(classes)
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    pixels = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *shape])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", count]) for name in ("logits", "probabilities")
    ]
    weight = numpy_helper.from_array(weight_CHWK.reshape(-1, count), "weight")
    graph = helper.make_graph(nodes, "main", [pixels], outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    planes, height, width = shape
    scale = {"mean": (0.0,) * planes, "std": (1.0,) * planes}
    spec = Spec(
        kind="image", shape=(planes, height, width), dtype="uint8", classes=classes, **scale, opening=opening
    )  # fmt: skip
    metadata = {"spec": spec.model_dump_json(), "unsure_below": "0.5", "recipe": "by hand", "dataset": "bars"}
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def write_places_model(path: Path, *, centre_ink: bool = False) -> Path:
    """Write a model that recognizes which third of an image, 20 pixels wide and 30 pixels high, is the lightest."""
    weight_CHWK = np.zeros((1, 30, 20, 3), np.float32)
    for place in range(3):
        weight_CHWK[0, 10 * place : 10 * place + 10, :, place] = 1e-3
    return write_model(path, weight_CHWK, PLACES, GREY.model_copy(update={"centre_ink": centre_ink}))


def write_colors_model(path: Path, others: int = 0) -> Path:
    """Write a model that recognizes which of the colours of a picture, cropped to 32x24 pixels, is the lightest.

    It has `others` more classes, which are less likely than the most likely colour.
    """
    weight_CHWK = np.zeros((3, 24, 32, 3 + others), np.float32)
    for plane in range(3):
        weight_CHWK[plane, ..., plane] = 1e-4
    opening = Opening(color="rgb", resize="crop", centre_ink=False, max_pixels=1_000_000)
    return write_model(path, weight_CHWK, [*COLORS, *(f"other {number}" for number in range(others))], opening)


def bar(place: int) -> NDArray[np.uint8]:
    """Return an image [30, 20] of the class `PLACES[place]`, too dim to look like ink on paper."""
    image_HW = np.random.default_rng(place).integers(20, 60, (30, 20), np.uint8)
    image_HW[10 * place + 3 : 10 * place + 7, 2:18] += 120
    return image_HW


def colored(plane: int) -> NDArray[np.uint8]:
    """Return an image [24, 32, 3] of the class `COLORS[plane]`."""
    image_HWC = np.random.default_rng(plane).integers(20, 60, (24, 32, 3), np.uint8)
    image_HWC[3:21, 4:28, plane] += 120
    return image_HWC


def enlarged(image_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image_HW.repeat(10, axis=0).repeat(10, axis=1)


def altered(change: Callable[[onnx.ModelProto], object]) -> bytes:
    """Return the content of digits.onnx after `change`."""
    model = onnx.load(DIGITS)
    change(model)
    return model.SerializeToString()


def set_spec(**values: object) -> Callable[[onnx.ModelProto], None]:
    """Return a function that changes fields of the spec in a model's metadata."""

    def change(model: onnx.ModelProto) -> None:
        (spec,) = (json.loads(entry.value) for entry in model.metadata_props if entry.key == "spec")
        set_metadata(spec=json.dumps(spec | values))(model)

    return change


def set_metadata(**values: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        merged = {entry.key: entry.value for entry in model.metadata_props} | values
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, merged)

    return change


def set_opening(**values: object) -> Callable[[onnx.ModelProto], None]:
    """Return a function that changes or adds settings in `opening` in a model's metadata."""

    def change(model: onnx.ModelProto) -> None:
        (spec,) = (json.loads(entry.value) for entry in model.metadata_props if entry.key == "spec")
        set_spec(opening=spec["opening"] | values)(model)

    return change
