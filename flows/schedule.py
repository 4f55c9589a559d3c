"""All that one machine needs to run the pipeline by the clock: `python -m flows.schedule`, until ctrl-C.

A Prefect server on loopback with its data in .prefect/, the work pool, the deployments of prefect.yaml and a worker.
"""

import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from contextlib import ExitStack
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from flows import leash
from stages.core.artifacts import locked
from stages.core.errors import UserError, reported

PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]
POOL = "vision-pipeline"
SHIFT_S = 5  # a worker that ends sooner will not do better when started again
START_S = 120  # for the server's first start, which makes its database


def environment(project: Path, port: int) -> dict[str, str]:
    """Of everything started here; what the user has set stays."""
    home = {"PREFECT_HOME": str(project / ".prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**home, **os.environ, "PATH": programs, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}


def start(stack: ExitStack, env: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    """Start a prefect command that ends, with its descendants, when `stack` is closed or this process dies."""
    process = subprocess.Popen(
        [sys.executable, leash.__file__, *PREFECT, *arguments], env=env, stdin=subprocess.PIPE, start_new_session=True
    )
    stack.callback(process.wait)
    assert process.stdin
    stack.callback(process.stdin.close)
    return process


def wait_until_healthy(server: subprocess.Popen[bytes], env: dict[str, str]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UserError(f"the Prefect server ended with status {server.returncode}; is its port taken (--port)?")
        try:
            if httpx.get(f"{env['PREFECT_API_URL']}/health").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise UserError(f"the Prefect server did not answer within {START_S} s")


def prefect(env: dict[str, str], *arguments: str) -> None:
    done = subprocess.run([*PREFECT, *arguments], env=env, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`prefect {' '.join(arguments)}` failed:\n{done.stdout}{done.stderr}")


def bury_dead_runs(env: dict[str, str]) -> None:
    """Mark the runs that the server takes for running as crashed: nothing runs yet, and they would hold the queue."""
    unfinished = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    with temporary_settings({PREFECT_API_URL: env["PREFECT_API_URL"]}), get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=unfinished))):
            client.set_flow_run_state(run.id, Crashed(message="the machine or the server ended during it"), force=True)


def serve(port: int) -> None:
    project = Path.cwd()
    env = environment(project, port)
    home = Path(env["PREFECT_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(home / "schedule.lock"))
        except BlockingIOError:
            raise UserError(f"another schedule of {project} is running") from None
        server = start(stack, env, "server", "start", "--host", "127.0.0.1", "--port", str(port))
        wait_until_healthy(server, env)
        bury_dead_runs(env)
        prefect(env, "work-pool", "create", POOL, "--type", "process", "--overwrite")
        prefect(env, "deploy", "--all")
        print(f"schedule: running; see http://127.0.0.1:{port}, start a run with", flush=True)
        print(f"  PREFECT_API_URL={env['PREFECT_API_URL']} prefect deployment run pipeline/on-demand", flush=True)
        print("ctrl-C stops all of it", flush=True)
        while server.poll() is None:
            started = time.monotonic()
            with ExitStack() as shift:
                worker = start(shift, env, "worker", "start", "--pool", POOL)
                while server.poll() is None and worker.poll() is None:
                    time.sleep(1)
            # a run whose worker is gone ends with it, and the next one needs a new worker
            if server.poll() is None:
                print(f"schedule: the worker ended with status {worker.returncode}, starting another", flush=True)
            if time.monotonic() - started < SHIFT_S:
                raise UserError("the worker ends as soon as it starts")
    raise UserError(f"the Prefect server ended with status {server.returncode}")


def main() -> None:
    parser = ArgumentParser("python -m flows.schedule", description=__doc__)
    parser.add_argument("--port", type=int, default=4200, help="of the server, on loopback (default: 4200)")
    arguments = parser.parse_args()
    with reported("schedule"):
        serve(arguments.port)


if __name__ == "__main__":
    main()
