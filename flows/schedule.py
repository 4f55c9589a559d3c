"""Run the pipeline on a schedule on this machine, until ctrl-C: `python -m flows.schedule`.

Starts a Prefect server on loopback, with its data in .prefect/, creates the work pool and the deployments in
prefect.yaml, and starts a worker.
"""

import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from flows.server import HOST, PREFECT, environment, start, start_server, wait_until_healthy
from stages.core.files.errors import UserError, report_errors
from stages.core.files.exclusive import locked
from stages.core.machine.interrupt import interruptible

POOL = "vision-pipeline"
WORKER = "schedule"
MIN_LIFE_S = 5  # seconds; a worker that ends sooner would only end again if it were restarted


@contextmanager
def stopping(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Stop a process and its descendants at the end of the block by closing its standard input, and wait for it."""
    try:
        yield process
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait()


def prefect(env: dict[str, str], *arguments: str) -> None:
    """Run a Prefect command and wait for it; raise `UserError` with its output if it fails."""
    done = subprocess.run([*PREFECT, *arguments], env=env, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`prefect {' '.join(arguments)}` failed:\n{done.stdout}{done.stderr}")


def crash_orphaned_runs(env: dict[str, str]) -> None:
    """Mark the unfinished runs of a dead worker as crashed, which frees the concurrency slots that they hold.

    A running run also reports its own end. A pending one cannot: either it has no process yet, or the server refuses to
    start it. A worker labels a run with its name just after taking it, so a run without a label is the dead worker's.
    """
    unfinished = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    with temporary_settings({PREFECT_API_URL: env["PREFECT_API_URL"]}), get_client(sync_client=True) as client:
        for run in client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=unfinished)),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
        ):
            if run.labels.get("prefect.worker.name", WORKER) == WORKER:
                client.set_flow_run_state(run.id, Crashed(message="its worker has ended"), force=True)


def serve(port: int) -> None:
    """Run the server and the worker until one of them cannot be kept running."""
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
        server = stack.enter_context(stopping(start_server(env, port)))
        wait_until_healthy(server, env)
        prefect(env, "work-pool", "create", POOL, "--type", "process", "--overwrite")
        prefect(env, "deploy", "--all")
        print(f"schedule: running; see http://{HOST}:{port}; to start a run:", flush=True)
        print(f"  PREFECT_API_URL={env['PREFECT_API_URL']} prefect deployment run pipeline/on-demand", flush=True)
        print("ctrl-C stops everything", flush=True)
        while server.poll() is None:
            crash_orphaned_runs(env)
            started = time.monotonic()
            with stopping(start(env, "worker", "start", "--pool", POOL, "--name", WORKER)) as worker:
                while server.poll() is None and worker.poll() is None:
                    time.sleep(1)
            # A run ends with its worker, and the next run needs a new one.
            if server.poll() is None:
                print(f"schedule: the worker ended with status {worker.returncode}; starting another", flush=True)
            if time.monotonic() - started < MIN_LIFE_S:
                raise UserError("the worker ends as soon as it starts")
    raise UserError(f"the Prefect server ended with status {server.returncode}")


def main() -> None:
    parser = ArgumentParser("python -m flows.schedule", description=__doc__)
    parser.add_argument("--port", type=int, default=4200, help="port of the server on loopback (default: 4200)")
    arguments = parser.parse_args()
    with report_errors("schedule"), interruptible():
        serve(arguments.port)


if __name__ == "__main__":
    main()
