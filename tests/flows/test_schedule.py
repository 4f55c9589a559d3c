"""Test `make schedule` for real: scheduled runs, runs and workers that die, and the runs after them."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Pending
from ruamel.yaml import YAML

from flows.notify import WEBHOOK
from tests.conftest import PROJECT, Clone, make_clone, tiny_params, wait_for
from tests.flows.conftest import experiments, free_port

# The tests share one schedule, because starting it takes a minute on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("schedule"), pytest.mark.timeout(600)]

SECRETS = {WEBHOOK: "http://127.0.0.1:9/hook-s3cr3t", "PREFECT_API_KEY": "pnu_s3cr3t"}
IMPATIENT = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5", "PREFECT_WORKER_QUERY_SECONDS": "2"}

# The only stage takes as many seconds as the seed says, and its loss depends on the recipe.
STAGES = """
stages:
  train: {cmd: python train.py, deps: [train.py], params: [recipe, seed], metrics: [loss.json: {cache: false}]}
"""
TRAIN = """
import json, pathlib, time
from ruamel.yaml import YAML
params = YAML(typ="safe").load(pathlib.Path("params.yaml"))
print("training with seed", params["seed"], flush=True)
time.sleep(params["seed"])
pathlib.Path("loss.json").write_text(json.dumps({"loss": ord(params["recipe"][0])}))
"""
ENDLESS = {"overrides": {"seed": 600}}


class Schedule(NamedTuple):
    project: Clone
    log: Path
    process: psutil.Process
    client: SyncPrefectClient

    def worker(self) -> psutil.Process:
        """Return the worker itself, not its leash, which is `python .../leash.py python -m prefect ...`."""
        commands = self.commands().items()
        (worker,) = (process for process, words in commands if "worker" in words and words[1] == "-m")
        return worker

    def commands(self) -> dict[psutil.Process, list[str]]:
        """Return the command lines of all living descendants."""
        found = {}
        for process in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                found[process] = process.cmdline()
        return found


def make_project(folder: Path, idx: Path) -> Clone:
    """Make a clone whose only stage takes a moment, and whose deployment `nightly` runs every 30 seconds."""
    project = make_clone(folder, tiny_params(idx))
    (project.folder / "dvc.yaml").write_text(STAGES)
    (project.folder / "train.py").write_text(TRAIN)
    deployments = project.read_yaml("prefect.yaml")
    nightly = next(item for item in deployments["deployments"] if item["name"] == "nightly")
    nightly["schedules"], nightly["parameters"] = [{"interval": 30}], {"recipe": "article"}
    YAML().dump(deployments, project.folder / "prefect.yaml")
    project.run("dvc", "repro", "--quiet")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message=one stage")
    return project


@contextmanager
def scheduled(project: Clone, log: Path) -> Iterator[Schedule]:
    """Run `python -m flows.schedule` and a client of its server, and end the schedule with ctrl-C."""
    port = free_port()
    with log.open("w") as output:
        process = psutil.Popen(
            [sys.executable, "-m", "flows.schedule", "--port", str(port)],
            cwd=project.folder,
            env=project.environment(IMPATIENT | SECRETS),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    try:
        wait_for(
            lambda: "schedule: running" in log.read_text() or process.poll() is not None, 300, "a running schedule"
        )
        assert process.poll() is None, log.read_text()
        assert listening(process) == {"127.0.0.1"}
        with (
            temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}),
            get_client(sync_client=True) as client,
        ):
            yield Schedule(project, log, process, client)
    finally:
        family = process.children(recursive=True) if process.is_running() else []
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert "s3cr3t" not in log.read_text()


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory, tiny_idx: Path) -> Iterator[Schedule]:
    """Run a schedule in a folder whose name is not ASCII."""
    folder = tmp_path_factory.mktemp("schedule")
    with scheduled(make_project(folder / "Jörgs Projekt", tiny_idx), folder / "log") as running:
        yield running


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses on which a process and its descendants listen."""
    family = [process, *process.children(recursive=True)]
    return {socket.laddr.ip for one in family for socket in one.net_connections() if socket.status == "LISTEN"}


def start_run(client: SyncPrefectClient, parameters: dict[str, Any]) -> FlowRun:
    deployment = client.read_deployment_by_name("pipeline/on-demand")
    return client.create_flow_run_from_deployment(deployment.id, parameters=parameters)


def start_endless_run(schedule: Schedule) -> tuple[FlowRun, psutil.Process]:
    """Start a run and, once its stage is running, return it with the stage's process."""
    run = start_run(schedule.client, ENDLESS)

    def stage() -> psutil.Process | None:
        assert not finished(schedule.client, run), schedule.log.read_text()
        commands = schedule.commands().items()
        return next((process for process, words in commands if words[-1:] == ["train.py"]), None)

    return run, wait_for(stage, 120, "the stage")


def finished(client: SyncPrefectClient, run: FlowRun) -> FlowRun | None:
    run = client.read_flow_run(run.id)
    return run if run.state and run.state.is_final() else None


def check_next_run(schedule: Schedule) -> None:
    """Check that the next run succeeds long before the dead run's concurrency slot expires, which takes 300 s."""
    good = start_run(schedule.client, {"recipe": "article"})
    ended = wait_for(lambda: finished(schedule.client, good), 240, "the next run")
    assert ended.state.is_completed(), schedule.log.read_text()
    assert good.name in experiments(schedule.project)


def test_a_run_that_the_clock_starts_becomes_an_experiment(schedule: Schedule) -> None:
    def completed() -> FlowRun | None:
        runs = (run for run in schedule.client.read_flow_runs() if run.auto_scheduled)
        ended = [run for run in runs if run.state and run.state.is_final()]
        assert all(run.state and run.state.is_completed() for run in ended), schedule.log.read_text()
        return ended[0] if ended else None

    run = wait_for(completed, 120, "a scheduled run")
    schedule.client.pause_deployment(run.deployment_id)
    assert run.name in experiments(schedule.project)
    diff = json.loads(schedule.project.run("dvc", "metrics", "diff", "--json", "main", run.name).stdout)
    assert diff["loss.json"]["loss"]["old"] != diff["loss.json"]["loss"]["new"]


def test_a_cancelled_run_ends_with_its_stage(schedule: Schedule) -> None:
    run, stage = start_endless_run(schedule)
    schedule.client.set_flow_run_state(run.id, Cancelling())
    ended = wait_for(lambda: finished(schedule.client, run), 60, "the cancelled run's end")
    assert ended.state.is_cancelled()
    assert psutil.wait_procs([stage], timeout=10)[1] == []


def test_a_run_ends_with_its_worker_and_the_next_one_succeeds(schedule: Schedule) -> None:
    run, _ = start_endless_run(schedule)
    worker = schedule.worker()
    hanging = worker.children(recursive=True)
    worker.kill()
    assert psutil.wait_procs(hanging, timeout=30)[1] == []
    ended = wait_for(lambda: finished(schedule.client, run), 30, "the dead run's end")
    assert ended.state.is_crashed()
    wait_for(
        lambda: "the worker ended with status 137; starting another" in schedule.log.read_text(), 5, "another worker"
    )
    check_next_run(schedule)


def test_a_run_whose_worker_dies_before_it_starts_does_not_hold_the_queue(schedule: Schedule) -> None:
    client = schedule.client
    predict = client.read_deployment_by_name("predict/predict").id
    other = client.create_flow_run_from_deployment(predict, parameters={"folder": "."}, state=Pending())
    client.update_flow_run_labels(other.id, {"prefect.worker.name": "of another machine"})
    doomed = start_run(client, ENDLESS)
    wait_for(lambda: client.read_flow_run(doomed.id).state_type == StateType.PENDING, 60, "a pending run")
    schedule.worker().kill()
    ended = wait_for(lambda: finished(client, doomed), 30, "the dead run's end")
    assert ended.state.is_crashed()
    check_next_run(schedule)
    assert client.read_flow_run(other.id).state_type == StateType.PENDING


def test_runs_of_a_dead_machine_do_not_hold_the_queue(tiny_idx: Path, tmp_path: Path) -> None:
    project, log = make_project(tmp_path / "project", tiny_idx), tmp_path / "log"
    with scheduled(project, log) as before:
        doomed, _ = start_endless_run(before)
        for process in [before.process, *before.process.children(recursive=True)]:
            process.kill()
    with scheduled(project, log) as schedule:
        ended = wait_for(lambda: finished(schedule.client, doomed), 10, "the dead run's end")
        assert ended.state.is_crashed()
        check_next_run(schedule)


def test_the_deployments_of_the_project() -> None:
    content = YAML(typ="safe").load(PROJECT / "prefect.yaml")
    by_name = {item["name"]: item for item in content["deployments"]}
    assert set(by_name) == {"nightly", "on-demand", "predict"}
    for name in ("nightly", "on-demand"):
        assert by_name[name]["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert {"cron", "timezone"} <= set(by_name["nightly"]["schedules"][0])
