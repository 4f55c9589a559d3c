"""A tiny data set of IDX files, a workspace that uses it, and a clone of the project that does."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from stages.core.datasets import FILES, write_idx

PROJECT = Path(__file__).parent.parent
CLASSES = [str(digit) for digit in range(10)]


def make_images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [count, 28, 28] and labels, all classes equally often: a bright square's place tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count, dtype=torch.uint8) % 10
    images = torch.randint(64, (count, 28, 28), dtype=torch.uint8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = 2 + 13 * (label // 5), 1 + 5 * (label % 5)
        image[top : top + 9, left : left + 5] += 160
    return images, labels


@pytest.fixture(scope="session")
def tiny_idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four IDX files: 300 training and 100 test images."""
    folder = tmp_path_factory.mktemp("tiny_idx")
    for split, count, seed in (("train", 300, 1), ("test", 100, 2)):
        images, labels = make_images(count, seed)
        write_idx(folder / FILES[f"{split}_images"], images)
        write_idx(folder / FILES[f"{split}_labels"], labels)
    return folder


def tiny_params(idx: Path) -> dict[str, Any]:
    """The project's params.yaml, turned to the data set in `idx` and to seconds of work."""
    params: dict[str, Any] = YAML(typ="safe").load(PROJECT / "params.yaml")
    sums = {field: hashlib.sha256((idx / name).read_bytes()).hexdigest() for field, name in FILES.items()}
    sources = [{"kind": "url", "url": str(idx)}]
    params["datasets"]["tiny"] = {"classes": CLASSES, "centre_ink": False, "sha256": sums, "sources": sources}
    params["dataset"], params["device"] = "tiny", "cpu"
    params["normalize"]["validation"] = 50
    params["parity"]["batch_sizes"] = [1, 7, 100]
    for recipe in params["recipes"].values():
        recipe.update(epochs=2, batch_size=25)
    return params


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of `condition()`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return value


def write_params(params: dict[str, Any], folder: Path) -> None:
    YAML().dump(params, folder / "params.yaml")


@pytest.fixture
def params(tiny_idx: Path) -> dict[str, Any]:
    return tiny_params(tiny_idx)


@pytest.fixture
def workspace(tmp_path: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the tiny params.yaml, and the current one: a stage's `main()` works in it."""
    write_params(params, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Clone:
    """A git and DVC repository with this project's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout
        for name in filter(None, names.split("\0")):
            if (PROJECT / name).is_file() and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / name, folder / name)

    def run(
        self, *command: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone with this environment's programs first on the path; output as one text."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(env or {}),
        )
        assert not check or done.returncode == 0, done.stdout
        return done

    @staticmethod
    def environment(env: Mapping[str, str]) -> dict[str, str]:
        """This process's, this interpreter's programs first, without what a test runner's own flow run would set."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # one thread each: the data are tiny, and threads that wait for each other starve where tests share cores
        return {**inherited, "PATH": path, "OMP_NUM_THREADS": "1", **env}

    def read_yaml(self, name: str) -> Any:
        return YAML(typ="safe").load(self.folder / name)


@pytest.fixture
def clone(tmp_path: Path, params: dict[str, Any]) -> Clone:
    """The project on tiny data, committed."""
    return make_clone(tmp_path / "clone", params)


def make_clone(folder: Path, params: dict[str, Any]) -> Clone:
    made = Clone(folder)
    write_params(params, made.folder)
    made.run("git", "init", "--quiet", "--initial-branch=main")
    made.run("git", "config", "user.name", "Test")
    made.run("git", "config", "user.email", "test@localhost")
    made.run("git", "add", "--all")
    made.run("git", "commit", "--quiet", "--message=tiny data")
    return made
