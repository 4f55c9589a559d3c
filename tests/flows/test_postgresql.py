"""Test a team's setup: PostgreSQL behind Prefect's server, and two workers that share the queue."""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import schedule, server
from tests.conftest import Clone, wait_for
from tests.flows.conftest import experiments, free_port
from tests.flows.test_schedule import finished, start_run


def program(name: str) -> str | None:
    """Return the path of one of PostgreSQL's server programs, which on Debian are not on the search path."""
    folders = [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """Yield the URL of an empty PostgreSQL database on loopback."""
    initdb, postgres, pg_isready = map(program, ("initdb", "postgres", "pg_isready"))
    if not (initdb and postgres and pg_isready):
        pytest.skip("PostgreSQL's server programs are not installed")
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    data, port = Path("/tmp") / f"vision-pipeline-postgresql-{os.getpid()}", free_port()
    data.mkdir()
    try:
        shutil.chown(data, user)
        make = [initdb, "-D", f"{data}/db", "-A", "trust", "-U", "prefect", "--no-sync"]
        subprocess.run(make, user=user, cwd=data, check=True, stdout=subprocess.DEVNULL)
        serve = [postgres, "-D", f"{data}/db", "-p", str(port), "-h", "127.0.0.1", "-k", str(data), "-F"]
        with (
            (tmp_path / "postgres.log").open("w") as log,
            subprocess.Popen(serve, user=user, cwd=data, stdout=log, stderr=log) as process,
        ):
            try:
                ready = [pg_isready, "-h", "127.0.0.1", "-p", str(port)]
                wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, 30, "PostgreSQL")
                yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
            finally:
                process.send_signal(signal.SIGINT)  # a fast shutdown
    finally:
        shutil.rmtree(data)


@pytest.mark.slow
def test_two_workers_on_postgresql(
    project: Clone, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployments = project.folder / "prefect.yaml"
    deployments.write_text(deployments.read_text().replace("limit: 1", "limit: 2"))
    for name, value in project.environment({"PREFECT_HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", database)
    monkeypatch.chdir(project.folder)
    port = free_port()
    env = server.environment(project.folder, port)
    with ExitStack() as stack:
        started = stack.enter_context(schedule.stopping(server.start_server(env, port)))
        server.wait_until_healthy(started, env)
        schedule.prefect(env, "work-pool", "create", schedule.POOL, "--type", "process")
        schedule.prefect(env, "deploy", "--all")
        for worker in ("first", "second"):
            options = ["--pool", schedule.POOL, "--name", worker, "--limit", "1"]
            stack.enter_context(schedule.stopping(server.start(env, "worker", "start", *options)))
        with temporary_settings({PREFECT_API_URL: env["PREFECT_API_URL"]}), get_client(sync_client=True) as client:
            runs = [start_run(client, {"force": True}) for _ in range(2)]
            ended = [wait_for(partial(finished, client, run), 300, "both runs") for run in runs]
    assert all(run.state.is_completed() for run in ended)
    assert {run.name for run in ended} <= experiments(project)
