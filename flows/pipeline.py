"""Run DVC's stages as Prefect tasks, independent ones at the same time, and save each run as a DVC experiment.

`python -m flows.pipeline` runs the flow once, in place; prefect.yaml deploys it.
"""

import os
import re
import signal
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, cast
from uuid import UUID

import psutil
from prefect import Task, flow, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff
from ruamel.yaml import YAML

from flows import report, workspace
from flows.graph import read_graph, read_stale
from flows.notify import notify
from flows.rwlock import remove_torn_rwlock
from flows.server import start_temporary_server
from flows.stage import Outcome, StageError, StageRunner
from stages.core.config.params import PARAMS, load_dataset, load_params, override_params
from stages.core.config.yaml_text import parse_yaml
from stages.core.files.errors import UserError, report_errors
from stages.core.machine.interrupt import interruptible


def is_temporary(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether a failed task may succeed if it is retried."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageError) and error.temporary


@task(
    cache_policy=NO_CACHE,  # DVC alone decides what is stale.
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=5),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_temporary,
)
def run_stage(stage: str, runner: StageRunner, *, stale: bool, force: bool) -> State[None]:
    """Bring one stage up to date; the state's name is the `Outcome`."""
    if not stale:
        return Completed(name=Outcome.UNCHANGED, message="dvc status lists no change")
    logger, started = get_run_logger(), time.monotonic()
    bar: UUID | None = None

    def log_line(line: str) -> None:
        nonlocal bar
        if line:
            logger.info(line)
        if epoch := re.search(r"epoch (\d+)/(\d+)", line):
            share = 100 * int(epoch[1]) / int(epoch[2])
            if bar is None:
                bar = cast("UUID", create_progress_artifact(share, key=f"{stage}-progress"))
            else:
                update_progress_artifact(bar, share)

    outcome = runner.run(stage, log_line, force=force)
    return Completed(name=outcome, message=f"{time.monotonic() - started:.1f} s")


@task(
    cache_policy=NO_CACHE, retries=3, retry_delay_seconds=exponential_backoff(backoff_factor=5), retry_jitter_factor=0.5
)
def push(project: Path, folder: Path, experiment: str) -> None:
    """Push data to the DVC remote and the experiment to the git remote."""
    workspace.push(project, folder, experiment)


@flow(
    name="pipeline",
    task_runner=ThreadPoolTaskRunner(max_workers=os.cpu_count()),  # type: ignore[arg-type]
    on_failure=[notify],
    on_crashed=[notify],
)
def pipeline(
    recipe: str | None = None,
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    targets: list[str] | None = None,
    in_place: bool = False,
) -> None:
    """Bring the pipeline up to date.

    Args:
        recipe: the recipe in params.yaml to train instead of the one that params.yaml selects.
        overrides: fields of params.yaml to change, such as `{"recipes.convnet.optimizer.lr": 0.01}`.
        force: run every stage, even if it is up to date.
        targets: run only these stages and those that they need.
        in_place: work in the project's folder, as `dvc repro` does. Otherwise, work in a separate checkout and save it
            as an experiment under the flow run's name.
    """
    end_with_the_worker()
    project, name = Path.cwd(), re.sub(r"[^A-Za-z0-9._-]+", "-", flow_run.name)
    remove_torn_rwlock(project)
    changes = {**({"recipe": recipe} if recipe else {}), **(overrides or {})}
    with workspace.in_place(project) if in_place else workspace.isolated(project, name) as folder:
        graph = read_graph(folder, targets or [])
        override_params(folder / PARAMS, changes)
        run_graph(folder, graph, force=force)
        if in_place:
            return
        if stale := read_stale(folder):
            # DVC would save their old outputs as if they had been made from the new inputs.
            get_run_logger().warning(
                "not saved as an experiment, because the targets leave out %s", ", ".join(sorted(stale))
            )
            return
        workspace.save(folder, name)
        if workspace.has_remote(folder):
            push(project, folder, name)


def run_graph(folder: Path, graph: Mapping[str, set[str]], *, force: bool) -> None:
    """Run the stages of `graph`, publish their results, and raise the first failure."""
    stale = set(graph) if force else read_stale(folder)
    futures: dict[str, PrefectFuture[Any]] = {}
    with stopped_at_the_end(StageRunner(folder)) as runner:
        for stage, needed in graph.items():
            if needed & stale:  # DVC decides when the stage's turn comes, and may still find it unchanged.
                stale.add(stage)
            submit = run_stage.with_options(name=stage).submit
            wait_for = [futures[name] for name in needed]
            futures[stage] = submit(
                stage, runner, stale=stage in stale, force=force, return_state=False, wait_for=wait_for
            )
        wait(list(futures.values()))
    report.publish(folder, {stage: future.state for stage, future in futures.items()})
    for future in futures.values():
        if future.state.is_failed() or future.state.is_crashed():
            future.result()
    if left := read_stale(folder) & set(graph):
        raise UserError(f"dvc status still lists {', '.join(sorted(left))} after the run")


@contextmanager
def stopped_at_the_end(runner: StageRunner) -> Iterator[StageRunner]:
    """Stop all stages at the end of the block, even after a cancellation, ctrl-C or the failure of a stage."""
    try:
        yield runner
    finally:
        runner.stop()


def end_with_the_worker() -> None:
    """End this process when the worker that started it, if any, dies, because nothing else would end it."""
    if "PREFECT__WORKER_NAME" not in os.environ:
        return
    parent = os.getppid()
    # If the worker died while this process was importing modules, the process already has another parent.
    try:
        is_orphan = "worker" not in psutil.Process(parent).cmdline()
    except psutil.Error:
        is_orphan = True

    def watch() -> None:
        while not is_orphan and os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=watch, daemon=True).start()


def main() -> None:
    parser = ArgumentParser("python -m flows.pipeline", description="Run the pipeline's flow once.")
    parser.add_argument("targets", nargs="*", help="run only these stages and those that they need (default: all)")
    parser.add_argument("-r", "--recipe", help="train this recipe from params.yaml")
    parser.add_argument(
        "-S", "--set-param", action="append", default=[], metavar="FIELD=VALUE",
        help="change a field of params.yaml, such as recipes.convnet.optimizer.lr=0.01",
    )  # fmt: skip
    parser.add_argument("-f", "--force", action="store_true", help="run all stages, even those that are up to date")
    parser.add_argument(
        "-i", "--isolated", action="store_true",
        help="work in a checkout of the committed revision and save the run as an experiment",
    )  # fmt: skip
    arguments = parser.parse_args()
    assignments = [assignment.partition("=") for assignment in arguments.set_param]
    for field, equals, _ in assignments:
        if not equals:
            parser.error(f"--set-param {field}: expected FIELD=VALUE")
    with report_errors("pipeline"), interruptible():
        load_dataset(load_params())
        overrides = {field: parse_yaml(value, YAML(typ="safe"), field) for field, _, value in assignments}
        with temporary_settings({PREFECT_API_URL: PREFECT_API_URL.value() or start_temporary_server()}):
            pipeline(arguments.recipe, overrides, arguments.force, arguments.targets, in_place=not arguments.isolated)


if __name__ == "__main__":
    main()
