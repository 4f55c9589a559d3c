"""Start Prefect's server and worker as processes that end with the process that started them."""

import atexit
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from flows import leash
from stages.core.files.errors import UserError

PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]
HOST = "127.0.0.1"
START_S = 300  # seconds; a server's first start creates its database, which takes a long time on a busy machine


def environment(project: Path, port: int) -> dict[str, str]:
    """Return the environment for Prefect's commands; variables that the user has set keep their values."""
    defaults = {
        "PREFECT_HOME": str(project / ".prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # A run that has to wait is postponed by this much. A worker looks 10 s ahead, so it retries after 5 s.
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "15",
        "DO_NOT_TRACK": "1",
    }
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**defaults, **os.environ, "PATH": programs, "PREFECT_API_URL": f"http://{HOST}:{port}/api"}


def start(env: dict[str, str], *arguments: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """Start a Prefect command.

    The command and its descendants end when its standard input is closed or this process dies.
    """
    return subprocess.Popen(
        [sys.executable, leash.__file__, *PREFECT, *arguments],
        env=env,
        stdin=subprocess.PIPE,
        stdout=stdout,
        start_new_session=True,  # Only this process handles ctrl-C.
    )


def start_server(env: dict[str, str], port: int, *options: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """Start a server on loopback."""
    return start(env, "server", "start", "--host", HOST, "--port", str(port), *options, stdout=stdout)


def wait_until_healthy(server: subprocess.Popen[bytes], env: dict[str, str]) -> None:
    """Wait until the server responds; raise `UserError` if it ends or takes longer than `START_S`."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            ended = f"the Prefect server for {env['PREFECT_API_URL']} ended with status {server.returncode}"
            raise UserError(f"{ended}; is its port taken?")
        try:
            if httpx.get(f"{env['PREFECT_API_URL']}/health").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise UserError(f"the Prefect server did not answer within {START_S} s")


def start_temporary_server() -> str:
    """Start a server that ends with this process, and return the address of its API.

    A temporary server that Prefect itself starts is in the terminal's process group: ctrl-C ends it together with the
    run, which then spends minutes trying to report its own end.
    """
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    env = environment(Path.cwd(), port)
    server = start_server(env, port, "--no-ui", "--log-level", "ERROR", stdout=subprocess.DEVNULL)
    assert server.stdin
    atexit.register(server.stdin.close)  # Prefect sends its last log lines at exit.
    wait_until_healthy(server, env)
    return env["PREFECT_API_URL"]
