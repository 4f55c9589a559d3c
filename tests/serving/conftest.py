"""The service as a real process, with a small model that knows MNIST's digits.

digits.onnx is what the pipeline of revision ba55462 makes of a small convnet, 99.30 % of 10,000 test images right:
`dvc exp run -S 'recipes.convnet.model.channels=[[8],[16],[32]]' -S recipes.convnet.epochs=8
-S recipes.convnet.augmentation.rotation=12 -S recipes.convnet.augmentation.scale=0.1
-S recipes.convnet.augmentation.shear=6`.
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import onnx
import pytest

from tests.conftest import PROJECT, Clone, wait_for

DIGITS = Path(__file__).with_name("digits.onnx")
COMMAND = [sys.executable, "-m", "serving.app", "--port", "0"]


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """What a shell starts in the background ignores ctrl-C, and so would all that the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Service:
    """`python -m serving.app` in `folder`, once it has printed its URL."""

    def __init__(self, folder: Path) -> None:
        self.model, self.log = folder / "artifacts/onnx/model.onnx", folder / "service.log"
        self.process = start(folder, self.log)
        wait_for(lambda: "http://" in self.output() or self.process.poll() is not None, 60, "a ready service")
        assert self.process.poll() is None, self.output()
        self.url = self.output().split("draw at ")[1].split(";")[0]
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def output(self) -> str:
        return self.log.read_text()

    def replace_model(self, content: bytes) -> None:
        """As a stage does: the file is gone, and then there in one step."""
        self.model.unlink(missing_ok=True)
        partial = self.model.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(self.model)

    def end(self, by: signal.Signals = signal.SIGINT) -> int:
        self.client.close()
        self.process.send_signal(by)
        return self.process.wait(timeout=30)


def start(folder: Path, log: Path, *options: str) -> subprocess.Popen[bytes]:
    with log.open("w") as file:
        return subprocess.Popen(
            [*COMMAND, *options],
            cwd=folder,
            env=Clone.environment({"PYTHONPATH": str(PROJECT)}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )


@contextmanager
def serving(folder: Path) -> Iterator[Service]:
    """A service with a model of its own, ended by ctrl-C if nothing has ended it."""
    path = folder / "artifacts/onnx/model.onnx"
    path.parent.mkdir(parents=True)
    shutil.copy(DIGITS, path)
    service = Service(folder)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.end()
    assert "Traceback" not in service.output()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """For tests that do not change it."""
    with serving(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as running:
        yield running


def altered(change: Callable[[onnx.ModelProto], object]) -> bytes:
    """Another model: the digits' one after `change`."""
    model = onnx.load(DIGITS)
    change(model)
    return model.SerializeToString()


def set_metadata(**values: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        merged = {entry.key: entry.value for entry in model.metadata_props} | values
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, merged)

    return change
