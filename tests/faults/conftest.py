"""Counts the faults that the tests in this folder inject, and prints the table of them in the end.

A plain `pytest` tries a few of each kind. VISION_PIPELINE_FAULTS=long tries them by the dozen and hundred, and writes
the table to benchmarks/faults.md.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copytree, rmtree
from typing import NoReturn

import pytest

from benchmarks import report
from tests.conftest import Clone, make_clone, tiny_params, write_params
from tests.faults.processes import OUTPUTS, STAGES, contents, run

LONG = os.environ.get("VISION_PIPELINE_FAULTS") == "long"
HEAD = ["fault", "times tried", "times survived", "data lost"]


class DataLostError(AssertionError):
    """What was there before the fault, or what it interrupted, cannot be had any more."""


@dataclass
class Count:
    tried: int = 0
    survived: int = 0
    lost: int = 0


class Faults:
    """How often each fault was tried, and what came of it."""

    def __init__(self) -> None:
        self.counts: dict[str, Count] = {}
        self.reasons: dict[str, str] = {}

    @contextmanager
    def tried(self, name: str) -> Iterator[None]:
        """One fault of this name, survived unless the block raises; a `DataLostError` counts as data lost."""
        count = self.counts.setdefault(name, Count())
        count.tried += 1
        try:
            yield
            count.survived += 1
        except DataLostError:
            count.lost += 1
            raise

    def untried(self, name: str, reason: str) -> NoReturn:
        """Skip the test: the table names what this machine cannot do."""
        self.reasons[name] = reason
        pytest.skip(f"{name}: {reason}")

    def table(self) -> list[str]:
        rows = [[name, str(count.tried), str(count.survived), str(count.lost)] for name, count in self.counts.items()]
        untried = [f"Not tried on this machine: {name} ({reason})." for name, reason in self.reasons.items()]
        return [report.table(HEAD, rows), *untried]


FAULTS = Faults()


@pytest.fixture(scope="session")
def faults() -> Faults:
    return FAULTS


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_idx: Path) -> Path:
    """A folder in which all stages have run undisturbed on tiny data; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("finished")
    write_params(tiny_params(tiny_idx), folder)
    for stage in STAGES:
        ended = run(folder, stage)
        assert ended.status == 0, ended.output
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`."""
    return copytree(finished, tmp_path / "copied")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_idx: Path) -> Clone:
    """The project after an undisturbed `dvc repro`; to be copied, not changed."""
    made = make_clone(tmp_path_factory.mktemp("undisturbed") / "clone", tiny_params(tiny_idx))
    made.run("dvc", "repro")
    return made


@pytest.fixture
def repeated(undisturbed: Clone, tmp_path: Path) -> Clone:
    """A copy of `undisturbed` that has forgotten the runs of its stages: DVC runs again what is stale."""
    copied = copy(undisturbed)
    copied.folder = copytree(undisturbed.folder, tmp_path / "repeated", symlinks=True)
    rmtree(copied.folder / ".dvc/cache/runs")
    return copied


def check_same(clone: Clone, undisturbed: Clone) -> None:
    """The same `dvc.lock` and the same bytes in every output."""
    if clone.read_yaml("dvc.lock") != undisturbed.read_yaml("dvc.lock"):
        raise DataLostError(
            clone.run("git", "diff", "--no-index", str(undisturbed.folder / "dvc.lock"), "dvc.lock", check=False).stdout
        )
    assert contents(clone.folder, *OUTPUTS) == contents(undisturbed.folder, *OUTPUTS)
    assert not list(clone.folder.rglob("*.partial"))
    for cached in (clone.folder / ".dvc/cache/files/md5").glob("??/*"):
        if len(cached.name) == 30 and hashlib.md5(cached.read_bytes()).hexdigest() != cached.parent.name + cached.name:
            raise DataLostError(f"{cached} is damaged")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not FAULTS.counts:
        return
    if LONG:
        results = {"faults": {name: asdict(count) for name, count in FAULTS.counts.items()}, "untried": FAULTS.reasons}
        packages = ("dvc", "prefect", "torch", "onnxruntime")
        report.write("faults", "Faults injected", packages, FAULTS.table(), results)
    else:
        terminalreporter.section("faults injected")
        terminalreporter.write("\n\n".join(FAULTS.table()) + "\n")
