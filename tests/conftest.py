"""Provide a tiny data set of IDX files, a workspace and a clone of the project that use it, and a browser."""

# The process that distributes the tests imports this module, too, before its workers start. Modules that take seconds
# to import are therefore imported where they are used.
from __future__ import annotations

import copy
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from ruamel.yaml import YAML

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray
    from playwright.sync_api import Browser

    from stages.core.examples.spec import Spec

pytest_plugins = ["tests.faults.counts"]
os.environ["OMP_NUM_THREADS"] = "1"  # Tests run in parallel, and threads that wait for each other would starve.
SERVERS = {"prefect_env", "s3_endpoint", "browser"}  # fixtures that start a server or a browser, which takes long
PROJECT = Path(__file__).parent.parent
CLASSES = [str(digit) for digit in range(10)]


@pytest.hookimpl(tryfirst=True)  # The markers must be set before `-m` selects by them.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a server as slow, and group them so that each server is started by only one worker.

    Tests that need a run of the whole graph come first, because that takes longest.
    """
    items.sort(key=lambda item: "undisturbed" not in getattr(item, "fixturenames", ()))
    for item in items:
        for server in SERVERS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.xdist_group(server))


def make_images(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images uint8 [count, 28, 28] with a bright patch whose position depends on the class, and the labels.

    All classes are equally frequent.
    """
    import numpy as np

    labels = np.arange(count, dtype=np.uint8) % 10
    images = np.random.default_rng(seed).integers(64, size=(count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = 2 + 13 * (label // 5), 1 + 5 * (label % 5)
        image[top : top + 9, left : left + 5] += 160
    return images, labels


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` fills once for all processes of this test run; tests must not change it."""
    from stages.core.files.atomic import remove
    from stages.core.files.exclusive import locked

    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # Each worker has its own folder within the folder of the test run.
        base = base.parent
    folder, made = base / name, base / f"{name}.made"
    with locked(base / f"{name}.lock", wait=True):
        if not made.exists():
            remove(folder)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def tiny_idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the four IDX files: 300 training and 100 test images."""
    from stages.core.data.idx import FILES, write_idx

    def make(folder: Path) -> None:
        for split, count, seed in (("train", 300, 1), ("test", 100, 2)):
            images, labels = make_images(count, seed)
            write_idx(folder / FILES[split].images, images)
            write_idx(folder / FILES[split].labels, labels)

    return make_once(tmp_path_factory, "tiny_idx", make)


def tiny_params(idx: Path) -> dict[str, Any]:
    """Return the project's params, changed to use the data set in `idx` and to run in seconds."""
    from stages.core.data.idx import FILES

    params: dict[str, Any] = YAML(typ="safe").load(PROJECT / "params.yaml")
    checksums = {
        split: {kind: hashlib.sha256((idx / name).read_bytes()).hexdigest() for kind, name in files._asdict().items()}
        for split, files in FILES.items()
    }
    sources = [{"kind": "url", "url": str(idx)}]
    scale = {"mean": 0.5, "std": 0.5}
    params["datasets"] = {"tiny": {"classes": [*CLASSES], "sha256": checksums, "sources": sources, **scale}}
    params["dataset"], params["machine"]["device"] = "tiny", "cpu"
    params["normalize"]["validation"] = 1 / 6
    params["parity"]["batch_sizes"] = [1, 7, 100]
    for recipe in params["recipes"].values():
        recipe.update(epochs=2, batch_size=25)
    return params


def make_spec(
    shape: tuple[int, int, int],
    classes: list[str],
    mean: float = 0.5,
    std: float = 0.5,
    *,
    centre_ink: bool = False,
) -> Spec:
    """Return the spec of raw images of this shape, grey or coloured, with the same scale for each plane."""
    from stages.core.examples.spec import Opening, Spec

    color: Literal["grey", "rgb"] = "grey" if shape[0] == 1 else "rgb"
    opening = Opening(color=color, resize="fit", centre_ink=centre_ink, max_pixels=50_000_000)
    scale = {"mean": (mean,) * shape[0], "std": (std,) * shape[0]}
    return Spec(kind="image", shape=shape, dtype="uint8", classes=classes, **scale, opening=opening)


def make_examples(columns: Mapping[str, Any], num_classes: int) -> pl.DataFrame:
    """Return a table of examples with these columns; all others are null."""
    import polars as pl

    from stages.core.data.schemas import examples

    schema = examples(num_classes).columns
    types = {name: column.dtype.type for name, column in schema.items()}
    table = pl.DataFrame(dict(columns), {name: types[name] for name in columns})
    absent = [pl.lit(None, types[name]).alias(name) for name in schema if name not in columns]
    return table.with_columns(absent).select(list(schema))


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait until `condition()` returns a true value, and return that value; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return value


def write_params(params: dict[str, Any], folder: Path) -> None:
    """Write params.yaml, and each of `datasets` to the dataset.yaml in its own folder."""
    params = copy.deepcopy(params)
    for name, dataset in params.pop("datasets", {}).items():
        (folder / "data" / name).mkdir(parents=True, exist_ok=True)
        YAML().dump(dataset, folder / "data" / name / "dataset.yaml")
    YAML().dump(params, folder / "params.yaml")


@pytest.fixture
def params(tiny_idx: Path) -> dict[str, Any]:
    return tiny_params(tiny_idx)


@pytest.fixture
def workspace(tmp_path: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that holds only the tiny params.yaml, and make it the current one, for a stage's `main()`."""
    write_params(params, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_idx: Path) -> Path:
    """Return a folder in which all stages have run on tiny data, without interruption; copy it, do not change it."""
    from stages.core.files.exclusive import exclusive

    def make(folder: Path) -> None:
        write_params(tiny_params(tiny_idx), folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for stage in ("download", "normalize", "train", "evaluate", "export", "parity", "report"):
                with exclusive(stage):
                    import_module(f"stages.{stage}").main()

    return make_once(tmp_path_factory, "finished", make)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Run Chromium, or skip the test if this machine does not have it."""
    from playwright.sync_api import Error, sync_playwright

    from tests.browser import ARGUMENTS, find_browser

    with sync_playwright() as playwright:
        path = find_browser(playwright)
        if not path:
            pytest.skip("no Chromium or Chrome found; `python -m tests.browser` installs one if it can")
        try:
            launched = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, chromium_sandbox=False)
        except Error as error:  # It may be only the launcher of a package that is not installed.
            pytest.skip(f"{path} does not start: {error}")
        yield launched
        launched.close()


class Clone:
    """Hold a git and DVC repository with this project's files, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self, *command: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone; its standard output and error are both in `stdout` of the result."""
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
        """Return this process's environment, changed by `env`, with this interpreter's programs first on the path.

        Prefect's variables are left out, because the tests may themselves be running in a flow run.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**inherited, "PATH": path, **env}

    def read_yaml(self, name: str) -> Any:
        return YAML(typ="safe").load(self.folder / name)


@pytest.fixture
def clone(tmp_path: Path, params: dict[str, Any]) -> Clone:
    """Return a clone of the project that uses the tiny data and is committed."""
    return make_clone(tmp_path / "clone", params)


def make_clone(folder: Path, params: dict[str, Any]) -> Clone:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (PROJECT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    made = Clone(folder)
    write_params(params, folder)
    made.run("git", "init", "--quiet", "--initial-branch=main")
    made.run("git", "config", "user.name", "Test")
    made.run("git", "config", "user.email", "test@localhost")
    made.run("git", "add", "--all")
    made.run("git", "commit", "--quiet", "--message=tiny data")
    return made


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of `finished` that the test may change."""
    return shutil.copytree(finished, tmp_path / "copied")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_idx: Path) -> Clone:
    """Return the project after a whole `dvc repro`, with its log beside the folder; copy it, do not change it."""

    def make(folder: Path) -> None:
        output = make_clone(folder, tiny_params(tiny_idx)).run("dvc", "repro").stdout
        folder.with_suffix(".log").write_text(output)

    return Clone(make_once(tmp_path_factory, "undisturbed", make))


@pytest.fixture
def repeated(undisturbed: Clone, tmp_path: Path) -> Clone:
    """Return a copy of `undisturbed` without DVC's cache of runs, so that stale stages run again."""
    from stages.core.files.atomic import remove

    folder = shutil.copytree(undisturbed.folder, tmp_path / "repeated", symlinks=True)
    remove(folder / ".dvc/cache/runs")
    return Clone(folder)
