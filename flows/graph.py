"""What DVC knows of the project: its graph, what is stale, what changed. No documented API: it stays in this file."""

from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from dvc.dvcfile import PROJECT_FILE
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.stage import PipelineStage, Stage

from stages.core.files.errors import UserError, did_you_mean


def read_graph(folder: Path, targets: Sequence[str] = ()) -> dict[str, set[str]]:
    """Each stage of the project in `folder` with the stages it needs directly, every stage after those it needs.

    With `targets`, these stages and all that they need. Raises `UserError` for a target that is no stage.
    """
    with Repo(str(folder)) as repo:
        graph = repo.index.graph  # edges run from the consumer to the producer
        needs = {
            address(stage): {address(up) for up in graph.successors(stage) if isinstance(up, PipelineStage)}
            for stage in graph
            if isinstance(stage, PipelineStage)
        }
    for target in targets:
        if target not in needs:
            known = f"the stages are {', '.join(needs)}{did_you_mean(target, list(needs))}"
            raise UserError(f"targets: found '{target}', {known}")
    wanted, waiting = set(), list(targets or needs)
    while waiting:
        wanted.add(name := waiting.pop())
        waiting += needs[name] - wanted
    return {name: needs[name] for name in TopologicalSorter(needs).static_order() if name in wanted}


def read_stale(folder: Path) -> set[str]:
    """The stages that `dvc status` lists: changed themselves, or with something changed that they read or write."""
    try:
        with Repo(str(folder)) as repo:
            stale = repo.status()
            return {address(stage) for stage in repo.index.stages if stage.addressing in stale}
    except LockError as error:
        raise UserError(f"another DVC process is at work in {folder}: {error}") from error


def read_metrics_diff(folder: Path) -> dict[str, dict[str, Any]]:
    """By file and metric, what `dvc metrics diff` says of the workspace against HEAD: `old`, `new` and `diff`."""
    with Repo(str(folder)) as repo:
        diff: dict[str, dict[str, Any]] = repo.metrics.diff(all=True).get("diff", {})
        return diff


def address(stage: Stage) -> str:
    """The stage's name for a DVC command in the project's folder; DVC's own `addressing` is for the current one."""
    file = stage.path_in_repo
    return str(stage.name if file == PROJECT_FILE else f"{file}:{stage.name}")
