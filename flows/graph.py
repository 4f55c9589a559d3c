"""Ask DVC for the graph, the stale stages and the changed metrics, through its undocumented Python API."""

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
    """Return each stage of the project in `folder` with the stages that it needs directly, in topological order.

    With `targets`, return only these stages and all that they need. Raises `UserError` if a target is not a stage.
    """
    with Repo(str(folder)) as repo:
        graph = repo.index.graph  # Edges run from the consumer to the producer.
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
    """Return the stages that `dvc status` lists: their definition, inputs or outputs have changed."""
    try:
        with Repo(str(folder)) as repo:
            stale = repo.status()
            return {address(stage) for stage in repo.index.stages if stage.addressing in stale}
    except LockError as error:
        raise UserError(f"another DVC process is at work in {folder}: {error}") from error


def read_metrics_diff(folder: Path) -> dict[str, dict[str, Any]]:
    """Return `old`, `new` and `diff` between HEAD and the workspace, by file and metric, as `dvc metrics diff` does."""
    with Repo(str(folder)) as repo:
        diff: dict[str, dict[str, Any]] = repo.metrics.diff(all=True).get("diff", {})
        return diff


def address(stage: Stage) -> str:
    """Return the stage's address as seen from the project's folder, not from the current one as DVC's `addressing`."""
    file = stage.path_in_repo
    return str(stage.name if file == PROJECT_FILE else f"{file}:{stage.name}")
