"""The stages as processes that start in a moment: forked from a server that has imported what they import."""

import os
from collections.abc import Callable
from graphlib import TopologicalSorter
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from stages.core.errors import reported
from stages.core.sums import files_at, sha256
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


CONTEXT = get_context("forkserver")
# hypothesis, where it is installed, because pandera imports it when it first validates
CONTEXT.set_forkserver_preload(
    ["pytest", "hypothesis", "pandera.strategies", __name__, *map("stages.{}".format, STAGES)]
)


class Ended(NamedTuple):
    status: int  # negative: the signal that ended the process
    output: str


def start(folder: Path, stage: str, prepare: Callable[[], object] = int) -> ForkServerProcess:
    """What `python -m stages.STAGE` does in `folder`, after `prepare()` in its process; the output goes to `log_of`."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for the server, if this starts it
    process = CONTEXT.Process(target=work, args=(folder, stage, prepare))
    process.start()
    return process


def work(folder: Path, stage: str, prepare: Callable[[], object]) -> None:
    log = os.open(log_of(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(folder)
    prepare()
    with reported(stage):
        import_module(f"stages.{stage}").main()


def log_of(folder: Path) -> Path:
    return folder.with_suffix(".log")


def end(process: ForkServerProcess, folder: Path) -> Ended:
    process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, log_of(folder).read_text(errors="replace"))


def run(folder: Path, stage: str, prepare: Callable[[], object] = int) -> Ended:
    return end(start(folder, stage, prepare), folder)


def contents(folder: Path, *paths: Path) -> dict[str, str]:
    """The sha256 of every file at these paths in `folder`, by its name."""
    files = [file for path in paths for file in files_at(folder / path)]
    return {str(file.relative_to(folder)): sha256(file) for file in files}
