"""`make schedule` for real: a run that the clock starts, a worker that dies, a next run that is good."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from ruamel.yaml import YAML

from flows.notify import WEBHOOK
from tests.conftest import PROJECT, Clone, wait_for
from tests.flows.conftest import free_port

SECRETS = {WEBHOOK: "http://127.0.0.1:9/hook-s3cr3t", "PREFECT_API_KEY": "pnu_s3cr3t"}


@contextmanager
def scheduled(clone: Clone, log: Path) -> Iterator[tuple[psutil.Process, SyncPrefectClient]]:
    """`python -m flows.schedule`, ended by ctrl-C, and a client of its server."""
    port = free_port()
    with log.open("w") as output:
        schedule = psutil.Popen(
            [sys.executable, "-m", "flows.schedule", "--port", str(port)],
            cwd=clone.folder,
            env=clone.environment({"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5", **SECRETS}),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    try:
        wait_for(
            lambda: "schedule: running" in log.read_text() or schedule.poll() is not None, 120, "a running schedule"
        )
        assert schedule.poll() is None, log.read_text()
        assert listening(schedule) == {"127.0.0.1"}
        with (
            temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}),
            get_client(sync_client=True) as client,
        ):
            yield schedule, client
    finally:
        family = schedule.children(recursive=True) if schedule.is_running() else []
        if schedule.poll() is None:
            schedule.send_signal(signal.SIGINT)
        schedule.wait(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert "s3cr3t" not in log.read_text()


def listening(process: psutil.Process) -> set[str]:
    """The addresses at which it and its descendants wait for connections."""
    family = [process, *process.children(recursive=True)]
    return {socket.laddr.ip for one in family for socket in one.net_connections() if socket.status == "LISTEN"}


def start_run(client: SyncPrefectClient, parameters: dict[str, object]) -> FlowRun:
    deployment = client.read_deployment_by_name("pipeline/on-demand")
    return client.create_flow_run_from_deployment(deployment.id, parameters=parameters)


def finished(client: SyncPrefectClient, run: FlowRun) -> FlowRun | None:
    run = client.read_flow_run(run.id)
    return run if run.state and run.state.is_final() else None


def test_from_the_clock_to_an_experiment_past_a_cancelled_run_and_a_dead_worker(clone: Clone, tmp_path: Path) -> None:
    deployments = clone.read_yaml("prefect.yaml")
    nightly = next(item for item in deployments["deployments"] if item["name"] == "nightly")
    nightly["schedules"], nightly["parameters"] = [{"interval": 20}], {"recipe": "article"}
    YAML().dump(deployments, clone.folder / "prefect.yaml")
    clone.run("dvc", "repro", "--quiet")
    clone.run("git", "add", "--all")
    clone.run("git", "commit", "--quiet", "--message=baseline")

    log = tmp_path / "schedule.log"
    with scheduled(clone, log) as (schedule, client):

        def completed() -> FlowRun | None:
            runs = (run for run in client.read_flow_runs() if run.auto_scheduled)
            ended = [run for run in runs if run.state and run.state.is_final()]
            assert all(run.state and run.state.is_completed() for run in ended), log.read_text()
            return ended[0] if ended else None

        run = wait_for(completed, 300, "a scheduled run")
        client.pause_deployment(run.deployment_id)
        assert run.name in clone.run("dvc", "exp", "list", "--name-only").stdout
        diff = json.loads(clone.run("dvc", "metrics", "diff", "--json", "main", run.name).stdout)
        loss = diff["artifacts/metrics/evaluation.json"]["loss"]
        assert loss["old"] != loss["new"]

        cancelled = start_run(client, {"overrides": {"recipes.convnet.epochs": 999}})
        wait_for(lambda: "epoch 3/999" in log.read_text() or finished(client, cancelled), 300, "the training")
        family = [process for process in schedule.children(recursive=True) if "stages.train" in process.cmdline()]
        assert family, log.read_text()
        client.set_flow_run_state(cancelled.id, Cancelling())
        ended = wait_for(lambda: finished(client, cancelled), 60, "the cancelled run's end")
        assert ended.state.is_cancelled()
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []

        doomed = start_run(client, {"overrides": {"recipes.convnet.epochs": 1000}})
        wait_for(lambda: "epoch 3/1000" in log.read_text() or finished(client, doomed), 300, "the training")
        family = schedule.children(recursive=True)
        assert any("stages.train" in process.cmdline() for process in family), log.read_text()
        commands = {process: process.cmdline() for process in family}
        # python -m prefect ... worker start; its leash is python .../leash.py python -m prefect ...
        (worker,) = (of for of, words in commands.items() if "worker" in words and words[1] == "-m")
        hanging = worker.children(recursive=True)
        worker.kill()
        _, alive = psutil.wait_procs(hanging, timeout=30)
        assert alive == []
        ended = wait_for(lambda: finished(client, doomed), 30, "the dead run's end")
        assert ended.state.is_crashed()
        assert "the worker ended with status 137, starting another" in log.read_text()
        good = start_run(client, {"recipe": "article"})
        ended = wait_for(lambda: finished(client, good), 300, "the next run")
        assert ended.state.is_completed(), log.read_text()
        assert good.name in clone.run("dvc", "exp", "list", "--name-only").stdout


def test_runs_of_a_dead_machine_do_not_hold_the_queue(clone: Clone, tmp_path: Path) -> None:
    log = tmp_path / "schedule.log"
    with scheduled(clone, log) as (schedule, client):
        doomed = start_run(client, {"overrides": {"recipes.convnet.epochs": 100_000}})
        wait_for(lambda: client.read_flow_run(doomed.id).state_type == StateType.RUNNING, 60, "a running run")
        for process in [schedule, *schedule.children(recursive=True)]:
            process.kill()
    with scheduled(clone, log) as (_, client):
        ended = wait_for(lambda: finished(client, doomed), 10, "the dead run's end")
        assert ended.state.is_crashed()
        good = start_run(client, {"targets": ["download"]})
        ended = wait_for(lambda: finished(client, good), 300, "the next run")
        assert ended.state.is_completed(), log.read_text()


def test_the_deployments_of_the_project() -> None:
    content = YAML(typ="safe").load(PROJECT / "prefect.yaml")
    by_name = {item["name"]: item for item in content["deployments"]}
    assert set(by_name) == {"nightly", "on-demand", "predict"}
    for name in ("nightly", "on-demand"):
        assert by_name[name]["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert {"cron", "timezone"} <= set(by_name["nightly"]["schedules"][0])
