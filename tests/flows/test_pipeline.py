"""Test the flow the way a user runs it, in separate processes, with a real server."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun

from flows.notify import WEBHOOK
from stages.core.files.atomic import remove
from tests.conftest import PROJECT, Clone, wait_for, write_params
from tests.flows.conftest import times
from tests.test_own_images import write_flowers

FLOW = ("python", "-m", "flows.pipeline")


def run_name(output: str) -> str:
    found = re.search(r"Beginning flow run '([^']+)'", output)
    assert found, output
    return found[1]


def read_run(client: SyncPrefectClient, name: str) -> FlowRun:
    (run,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
    return run


def task_states(client: SyncPrefectClient, name: str) -> dict[str, str]:
    """Return the name of each task's final state."""
    flow_filter = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
    runs = client.read_task_runs(flow_run_filter=flow_filter)
    return {run.name.rsplit("-", 1)[0]: run.state.name for run in runs if run.state and run.state.name}


def artifact(client: SyncPrefectClient, key: str, run: FlowRun) -> object:
    found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    (data,) = [item.data for item in found if item.flow_run_id == run.id]
    return json.loads(data) if isinstance(data, str) else data


def test_states_name_what_dvc_did(project: Clone, prefect_env: dict[str, str], client: SyncPrefectClient) -> None:
    first = run_name(project.run(*FLOW, env=prefect_env).stdout)
    wait_for(lambda: set(task_states(client, first).values()) == {"Ran"}, 20, "all stages ran")
    # Independent stages ran at the same time, each after those that it needs.
    (a, b, c, d) = (times(project.folder, stage) for stage in "abcd")
    assert max(b[0], c[0]) < min(b[1], c[1])
    assert a[1] <= min(b[0], c[0])
    assert max(b[1], c[1]) <= d[0]
    stages = artifact(client, "stages", read_run(client, first))
    assert isinstance(stages, list)
    assert [row["state"] for row in stages] == ["Ran"] * 4

    second = run_name(project.run(*FLOW, env=prefect_env).stdout)
    wait_for(lambda: set(task_states(client, second).values()) == {"Unchanged"}, 20, "nothing ran")

    (project.folder / "b.txt").unlink()
    third = run_name(project.run(*FLOW, env=prefect_env).stdout)
    expected = {"a": "Unchanged", "b": "Restored", "c": "Unchanged", "d": "Unchanged"}
    wait_for(lambda: task_states(client, third) == expected, 20, "one stage restored")

    fourth = run_name(project.run(*FLOW, "--force", "b", env=prefect_env).stdout)
    wait_for(lambda: task_states(client, fourth) == {"a": "Ran", "b": "Ran"}, 20, "targets with what they need")


def test_the_same_lock_file_as_dvc_repro(
    clone: Clone, undisturbed: Clone, prefect_env: dict[str, str], client: SyncPrefectClient
) -> None:
    name = run_name(clone.run(*FLOW, env=prefect_env).stdout)
    assert clone.read_yaml("dvc.lock") == undisturbed.read_yaml("dvc.lock")
    assert "Data and pipelines are up to date." in clone.run("dvc", "status").stdout
    run = read_run(client, name)
    picture = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["confusion-matrix"])))
    assert any(item.flow_run_id == run.id and "data:image/png" in str(item.data) for item in picture)
    metrics = artifact(client, "metrics", run)
    assert isinstance(metrics, list)
    assert {"evaluation.accuracy", "parity.tolerance_used"} <= {row["metric"] for row in metrics}
    progress = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["train-progress"])))
    assert [item.data for item in progress if item.flow_run_id == run.id] == [100.0]


@pytest.mark.slow
def test_pictures_give_the_same_lock_file_as_dvc_repro(
    clone: Clone, params: dict[str, Any], prefect_env: dict[str, str]
) -> None:
    params["dataset"], params["recipe"] = "flowers", "article"
    write_params(params, clone.folder)
    write_flowers(clone.folder / "data/flowers")
    clone.run("dvc", "add", "data/flowers/rose", "data/flowers/tulip", "data/flowers/daisy")
    clone.run("git", "add", "--all")
    clone.run("dvc", "repro")
    expected = clone.read_yaml("dvc.lock")
    for path in (clone.folder / "dvc.lock", clone.folder / "artifacts", clone.folder / ".dvc/cache/runs"):
        remove(path)
    clone.run("git", "checkout", "artifacts")
    clone.run(*FLOW, env=prefect_env)
    assert clone.read_yaml("dvc.lock") == expected
    assert "Data and pipelines are up to date." in clone.run("dvc", "status").stdout


@pytest.mark.slow
def test_without_a_server_the_flow_starts_one_that_ends_with_it(project: Clone, tmp_path: Path) -> None:
    done = project.run(*FLOW, "a", env={"PREFECT_HOME": str(tmp_path / "home")})
    assert "Finished in state Completed" in done.stdout
    assert (project.folder / "a.txt").exists()
    assert not [each for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == str(project.folder)]


class Webhook(BaseHTTPRequestHandler):
    received: list[dict[str, object]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append({"path": self.path, **json.loads(body)})
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it
        pass


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Yield the URL of a local server, with a secret in its path, and the list of what has been posted there."""
    Webhook.received = []
    with HTTPServer(("127.0.0.1", 0), Webhook) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook-s3cr3t", Webhook.received
        server.shutdown()


def test_a_failed_stage_fails_the_flow(
    project: Clone,
    prefect_env: dict[str, str],
    client: SyncPrefectClient,
    webhook: tuple[str, list[dict[str, object]]],
) -> None:
    address, received = webhook
    (project.folder / "trouble").mkdir()
    (project.folder / "trouble/b").write_text("always 1")
    done = project.run(*FLOW, check=False, env={**prefect_env, WEBHOOK: address})
    assert done.returncode != 0
    # The stage was not retried, and the stages after it did not run.
    assert done.stdout.count(" - Running stage 'b'") == 1
    assert not (project.folder / "d.txt").exists()
    name = run_name(done.stdout)
    stages = artifact(client, "stages", read_run(client, name))
    assert isinstance(stages, list)
    states = {"a": "Ran", "b": "Failed", "c": "Ran", "d": "Not run"}
    assert {row["stage"]: row["state"] for row in stages} == states
    (note,) = received
    assert (note["path"], note["run"], note["stage"]) == ("/hook-s3cr3t", name, "b")
    assert isinstance(note["lines"], list)
    assert "trouble in b" in note["lines"]
    assert "s3cr3t" not in done.stdout

    unreachable = "http://127.0.0.1:9/hook-s3cr3t"
    done = project.run(*FLOW, check=False, env={**prefect_env, WEBHOOK: unreachable})
    assert "VISION_PIPELINE_WEBHOOK was not notified of the failure: ConnectError" in done.stdout
    assert "s3cr3t" not in done.stdout


def test_no_secret_in_output_logs_and_artifacts(
    clone: Clone, params: dict[str, Any], prefect_env: dict[str, str], client: SyncPrefectClient
) -> None:
    """Put secrets into the URL of a source and into the environment."""
    tiny = params["datasets"]["tiny"]
    tiny["sources"].insert(0, {"kind": "url", "url": "http://user:s3cr3t@127.0.0.1:9/data?token=s3cr3t"})
    write_params(params, clone.folder)
    secrets = {WEBHOOK: "http://127.0.0.1:9/hook-s3cr3t", "PREFECT_API_KEY": "pnu_s3cr3t", "no_proxy": "127.0.0.1"}
    done = clone.run(*FLOW, "download", env={**prefect_env, **secrets})
    assert "http://***@127.0.0.1:9/data?*** failed" in done.stdout
    assert "s3cr3t" not in done.stdout
    run = read_run(client, run_name(done.stdout))
    # Without a filter, the server would return only the first logs and artifacts of all runs.
    only_logs = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
    only_artifacts = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    logs = wait_for(lambda: [log.message for log in client.read_logs(only_logs)], 60, "its logs")
    stored = [*logs, *(str(item.data) for item in client.read_artifacts(artifact_filter=only_artifacts))]
    assert len(stored) > len(logs)
    assert "s3cr3t" not in "".join(stored)
    found = subprocess.run(
        ["grep", "--recursive", "--files-with-matches", "--text", "--exclude-dir=.git", "s3cr3t", "."],
        cwd=clone.folder, check=False, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    # The user has written the secret to data/tiny/dataset.yaml, and the tests contain it, too.
    assert [name for name in found.stdout.split() if not name.startswith("./tests/")] == ["./data/tiny/dataset.yaml"]


def test_a_temporary_failure_is_tried_again(project: Clone, prefect_env: dict[str, str]) -> None:
    (project.folder / "trouble").mkdir()
    (project.folder / "trouble/a").write_text("once 75")
    done = project.run(*FLOW, env=prefect_env)
    assert done.stdout.count(" - Running stage 'a'") == 2
    assert (project.folder / "d.txt").exists()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_survives_the_flow(repeated: Clone, prefect_env: dict[str, str], ending: signal.Signals) -> None:
    """End the flow in the middle of a training run; the next run must succeed."""
    command = [sys.executable, "-m", "flows.pipeline", "-S", "recipes.convnet.epochs=1000"]
    log = repeated.folder.parent / "flow.log"
    with log.open("w") as output:
        flow = subprocess.Popen(
            command, cwd=repeated.folder, stdout=output, stderr=output, env=repeated.environment(prefect_env)
        )
    try:
        wait_for(lambda: "epoch 3/1000" in log.read_text() or flow.poll() is not None, 300, "the training run")
        family = psutil.Process(flow.pid).children(recursive=True)
        assert any("stages.train" in process.cmdline() for process in family), log.read_text()
        flow.send_signal(ending)
        flow.wait(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == []
    finally:
        flow.kill()
        flow.wait()
    repeated.run("git", "checkout", "--quiet", "params.yaml")
    repeated.run("dvc", "repro", "train")
    assert "up to date" in repeated.run("dvc", "status", "train").stdout


def is_importing(flow: psutil.Process, _: Path) -> bool:
    """Return whether polars is loaded, which is one of the last imports and has its own handler for ctrl-C."""
    return any("polars" in mapped.path for mapped in flow.memory_maps())


def is_starting_its_server(flow: psutil.Process, _: Path) -> bool:
    return any("server" in child.cmdline() for child in flow.children(recursive=True))


def is_running_a_stage(_: psutil.Process, log: Path) -> bool:
    return "Running stage 'b'" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "message"),
    [
        (is_importing, ""),
        (is_starting_its_server, "pipeline: interrupted\n"),
        (is_running_a_stage, "pipeline: interrupted\n"),
    ],
)
def test_ctrl_c_without_a_server_brings_the_prompt_back_in_seconds(
    project: Clone, tmp_path: Path, moment: Callable[[psutil.Process, Path], bool], message: str
) -> None:
    """Send the signal to the whole process group, as a terminal does."""
    log = tmp_path / "flow.log"
    with log.open("w") as output:
        flow = subprocess.Popen(
            [sys.executable, "-m", "flows.pipeline"], cwd=project.folder, stdout=output, stderr=output,
            env=project.environment({"PREFECT_HOME": str(tmp_path / "home")}), process_group=0,
        )  # fmt: skip
    try:
        process = psutil.Process(flow.pid)
        wait_for(lambda: flow.poll() is not None or moment(process, log), 200, moment.__name__)
        assert flow.poll() is None, log.read_text()
        family = process.children(recursive=True)
        os.killpg(flow.pid, signal.SIGINT)
        assert flow.wait(timeout=30) == 130
        assert psutil.wait_procs(family, timeout=20)[1] == []
    finally:
        flow.kill()
        flow.wait()
    assert "Traceback" not in log.read_text()
    assert log.read_text().endswith(message)
    assert (log.read_text() == "") == (message == "")
    project.run("dvc", "repro")


def test_a_run_ends_if_its_worker_died_while_it_started() -> None:
    run = "import time; from flows.pipeline import end_with_the_worker; end_with_the_worker(); time.sleep(600)"
    worker = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {run!r}], stdout=2).pid)"
    env = Clone.environment({"PREFECT__WORKER_NAME": "dead"})
    done = subprocess.run([sys.executable, "-c", worker], cwd=PROJECT, env=env, check=True, stdout=subprocess.PIPE)
    wait_for(lambda: not psutil.pid_exists(int(done.stdout)), 100, "its end")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "convent"], "did you mean 'convnet'"),
        (["-S", "recipes.convnet.optimiser.lr=0.1"], "there is no 'optimiser', did you mean 'optimizer'"),
        (["-S", "recipes.convnet.optimizer.lr=-1"], "recipes.convnet.optimizer.lr: found -1"),
        (["-S", "seed=[1"], "seed is not valid YAML"),
        (["trian"], "found 'trian', the stages are"),
    ],
)
def test_a_wrong_name_is_reported_before_anything_runs(
    clone: Clone, prefect_env: dict[str, str], arguments: list[str], message: str
) -> None:
    before = (clone.folder / "params.yaml").read_bytes()
    done = clone.run(*FLOW, *arguments, check=False, env=prefect_env)
    assert done.returncode != 0
    assert message in done.stdout
    assert "Running stage" not in done.stdout
    assert (clone.folder / "params.yaml").read_bytes() == before
