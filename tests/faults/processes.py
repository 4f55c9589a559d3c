"""The stages as processes that start in a moment: forked from a server that has imported what they import."""

import os
import runpy
import sys
from collections.abc import Callable
from graphlib import TopologicalSorter
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from stages.core.files.checksums import files_at, sha256
from tests.conftest import PROJECT

DATASET = "tiny"


class Stage(NamedTuple):
    """What dvc.yaml says of a stage, its source files left out."""

    inputs: list[Path]
    outputs: list[Path]


def read_stages() -> dict[str, Stage]:
    """All stages of dvc.yaml, each after those it needs."""
    listed: dict[str, Any] = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]

    def artifacts(*entries: Any) -> list[Path]:
        names = [name for entry in entries for name in ([entry] if isinstance(entry, str) else entry)]
        return [Path(name.replace("${dataset}", DATASET)) for name in names if name.startswith("artifacts/")]

    found = {
        name: Stage(
            artifacts(*stage["deps"]),
            artifacts(*(entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, []))),
        )
        for name, stage in listed.items()
    }
    makers = {output: name for name, stage in found.items() for output in stage.outputs}
    order = TopologicalSorter(
        {name: {makers[dep] for dep in stage.inputs if dep in makers} for name, stage in found.items()}
    )
    return {name: found[name] for name in order.static_order()}


STAGES = read_stages()
OUTPUTS = [output for stage in STAGES.values() for output in stage.outputs]

CONTEXT = get_context("forkserver")
# hypothesis, where it is installed, because pandera imports it when it first validates
CONTEXT.set_forkserver_preload(
    ["pytest", "hypothesis", "pandera.strategies", __name__, *map("stages.{}".format, STAGES), "tests.faults.warm"]
)


class Ended(NamedTuple):
    status: int  # negative: the signal that ended the process
    output: str


class Running:
    """`python -m stages.STAGE` in `folder`, but for `prepare()`, called before it in its process."""

    def __init__(self, folder: Path, stage: str, prepare: Callable[[], object] = int) -> None:
        self.reader, writer = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=work, args=(folder, stage, writer, prepare))
        self.process.start()
        writer.close()

    def end(self) -> Ended:
        with open(os.dup(self.reader.fileno()), errors="replace") as output:  # noqa: PTH123  # it has no path
            text = output.read()
        self.reader.close()
        self.process.join()
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, text)

    def kill(self) -> None:
        self.process.kill()
        self.end()


def work(folder: Path, stage: str, output: Connection, prepare: Callable[[], object]) -> None:
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    os.chdir(folder)
    prepare()
    sys.modules.pop(f"stages.{stage}", None)  # imported only for what it imports; it now runs as the main one
    runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)


def run(folder: Path, stage: str, prepare: Callable[[], object] = int) -> Ended:
    return Running(folder, stage, prepare).end()


def contents(folder: Path, *paths: Path) -> dict[str, str]:
    """The sha256 of every file at these paths in `folder`, by its name."""
    files = [file for path in paths for file in files_at(folder / path)]
    return {str(file.relative_to(folder)): sha256(file) for file in files}
