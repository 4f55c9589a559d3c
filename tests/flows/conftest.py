"""Provide a real Prefect server for all flow tests, and a small project whose stages take moments."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import leash
from tests.conftest import Clone, wait_for

# Stage a needs nothing, b and c need a, and d needs both. Each records when it started and ended.
STAGES = """
stages:
  a: {cmd: python work.py a, deps: [work.py], outs: [a.txt]}
  b: {cmd: python work.py b 2, deps: [work.py, a.txt], outs: [b.txt]}
  c: {cmd: python work.py c 2, deps: [work.py, a.txt], outs: [c.txt]}
  d: {cmd: python work.py d, deps: [work.py, b.txt, c.txt], outs: [d.txt]}
"""
WORK = """
import sys, time
from pathlib import Path
name, seconds = sys.argv[1], float((sys.argv[2:] or ["0"])[0])
started = time.time()
trouble = Path("trouble") / name
if trouble.exists():
    words = trouble.read_text().split()
    if words[0] == "once":
        trouble.unlink()
    print("trouble in", name, flush=True)
    sys.exit(int(words[-1]))
time.sleep(seconds)
Path(f"{name}.txt").write_text(name)
Path(f"{name}.times").write_text(f"{started} {time.time()}")
"""


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Handle ctrl-C even in the background, where a shell makes its processes, and so the flows, ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def prefect_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Yield the environment for clients of a Prefect server that runs for the whole session."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    env = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, leash.__file__, sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=Clone.environment(env),
        )

    def healthy() -> bool:
        assert server.poll() is None, (home / "server.log").read_text()
        try:
            return httpx.get(f"{env['PREFECT_API_URL']}/health").is_success
        except httpx.TransportError:
            return False

    wait_for(healthy, 120, "a healthy server")
    yield env
    assert server.stdin
    server.stdin.close()
    server.wait()


@pytest.fixture
def client(prefect_env: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with (
        temporary_settings({PREFECT_API_URL: prefect_env["PREFECT_API_URL"]}),
        get_client(sync_client=True) as connected,
    ):
        yield connected


@pytest.fixture
def project(clone: Clone) -> Clone:
    """Return the clone with four committed stages that take moments in place of its own."""
    (clone.folder / "dvc.yaml").write_text(STAGES)
    (clone.folder / "work.py").write_text(WORK)
    (clone.folder / ".gitignore").write_text("*.times\ntrouble\n__pycache__\n/*.txt\n")
    clone.run("git", "add", "--all")
    clone.run("git", "commit", "--quiet", "--message=four stages")
    return clone


def experiments(project: Clone) -> set[str]:
    """Return the names of the experiments from git, because `dvc exp list` fails while another run saves one."""
    return set(project.run("git", "for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps").stdout.split())


def times(folder: Path, stage: str) -> tuple[float, float]:
    started, ended = (folder / f"{stage}.times").read_text().split()
    return float(started), float(ended)
