"""Count the faults that tests inject, over all processes of a test run, and print a table of them at the end.

A plain run tries a few of each kind. VISION_PIPELINE_FAULTS=long tries dozens or hundreds of each, and writes the table
to benchmarks/faults.md.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import pytest

from benchmarks import report

LONG = os.environ.get("VISION_PIPELINE_FAULTS") == "long"
HEAD = ["fault", "times tried", "times survived", "data lost"]


class DataLostError(AssertionError):
    """Report that what was there before the fault, or what it interrupted, is lost."""


@dataclass
class Count:
    tried: int = 0
    survived: int = 0
    lost: int = 0


class Faults:
    """Count how often each fault was tried, and what came of it."""

    def __init__(self) -> None:
        self.counts: dict[str, Count] = {}
        self.reasons: dict[str, str] = {}

    @contextmanager
    def tried(self, name: str) -> Iterator[None]:
        """Count one fault of this name: as survived unless the block raises, as data lost on a `DataLostError`."""
        count = self.counts.setdefault(name, Count())
        count.tried += 1
        try:
            yield
            count.survived += 1
        except DataLostError:
            count.lost += 1
            raise

    def untried(self, name: str, reason: str) -> NoReturn:
        """Skip the test and have the table name what this machine cannot do."""
        self.reasons[name] = reason
        pytest.skip(f"{name}: {reason}")

    def as_dict(self) -> dict[str, Any]:
        return {"faults": {name: asdict(count) for name, count in self.counts.items()}, "untried": self.reasons}

    def add(self, others: dict[str, Any]) -> None:
        """Add what another process has counted, as its `as_dict` returned it."""
        for name, other in others["faults"].items():
            count = self.counts.setdefault(name, Count())
            for field, value in other.items():
                setattr(count, field, getattr(count, field) + value)
        self.reasons |= others["untried"]

    def table(self) -> list[str]:
        rows = [[name, str(count.tried), str(count.survived), str(count.lost)] for name, count in self.counts.items()]
        untried = [f"Not tried on this machine: {name} ({reason})." for name, reason in self.reasons.items()]
        return [report.table(HEAD, rows), *untried]


FAULTS = Faults()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if output := getattr(session.config, "workeroutput", None):  # This process is a worker of pytest-xdist.
        output["faults"] = FAULTS.as_dict()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    FAULTS.add(getattr(node, "workeroutput", {}).get("faults", Faults().as_dict()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not FAULTS.counts:
        return
    if LONG:
        packages = ("dvc", "prefect", "torch", "onnxruntime")
        report.write("faults", "Faults injected", packages, FAULTS.table(), FAULTS.as_dict())
    else:
        terminalreporter.section("faults injected")
        terminalreporter.write("\n\n".join(FAULTS.table()) + "\n")
