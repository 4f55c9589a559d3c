"""Measure how much time the flow adds to `dvc repro`: `python -m benchmarks.flow` writes benchmarks/flow.md.

Two DVC projects are created in a temporary folder, and a Prefect server is running. Each figure is the wall-clock time
of a whole process; the two commands alternate.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx

from benchmarks.report import PROJECT, spread, table, write
from flows import leash
from flows.graph import read_graph

DVC = [sys.executable, "-m", "dvc", "repro"]
FLOW = [sys.executable, "-m", "flows.pipeline"]
SLEEPERS = """
stages:
  one: {cmd: sleep 5 && echo > one.txt, outs: [one.txt]}
  two: {cmd: sleep 5 && echo > two.txt, outs: [two.txt]}
"""


@contextmanager
def server(home: Path) -> Iterator[dict[str, str]]:
    """Run a Prefect server; yield the environment for its clients once it is up."""
    port = 4257
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, leash.__file__, sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while True:
        try:
            if httpx.get(f"{url}/health").is_success:
                break
        except httpx.TransportError:
            time.sleep(0.5)
    yield {**env, "PREFECT_API_URL": url}
    assert process.stdin
    process.stdin.close()
    process.wait()


def copy_project(folder: Path) -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, folder / name)
    identity = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "benchmark"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def seconds(command: list[str], folder: Path, env: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def pairs(runs: int, folder: Path, env: dict[str, str], *options: str) -> dict[str, list[float]]:
    """Return the wall-clock seconds of the flow's process, of the flow run in it and of dvc repro, in turn."""
    times: dict[str, list[float]] = {"flow": [], "flow run": [], "dvc repro": []}
    for _ in range(runs):
        times["flow"].append(seconds([*FLOW, *options], folder, env))
        if "PREFECT_API_URL" in env:
            times["flow run"].append(last_run_seconds(env["PREFECT_API_URL"]))
        times["dvc repro"].append(seconds([*DVC, *options], folder, env))
    return times


def last_run_seconds(api: str) -> float:
    """Return the seconds that the last flow run took, according to the server."""
    (run,) = httpx.post(f"{api}/flow_runs/filter", json={"sort": "START_TIME_DESC", "limit": 1}).json()
    return float(run["total_run_time"])


def row(what: str, times: dict[str, list[float]]) -> list[str]:
    more = median(flow - dvc for flow, dvc in zip(times["flow"], times["dvc repro"], strict=True))
    return [what, *(spread(few) if few else "" for few in times.values()), f"{more:+.1f}", str(len(times["flow"]))]


def main() -> None:
    parser = ArgumentParser("python -m benchmarks.flow", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="pairs of short runs (default: 5)")
    parser.add_argument("--full-runs", type=int, default=3, help="pairs of full runs on real data (default: 3)")
    arguments = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch, server(Path(scratch) / "home") as env:
        sleepers, pipeline = Path(scratch) / "sleepers", Path(scratch) / "pipeline"
        copy_project(sleepers)
        (sleepers / "dvc.yaml").write_text(SLEEPERS)
        results["two independent stages of 5 s"] = pairs(arguments.runs, sleepers, env, "--force")
        copy_project(pipeline)
        subprocess.run(DVC, cwd=pipeline, env=env, check=True)
        results["nothing to do"] = pairs(arguments.runs, pipeline, env)
        alone = {name: value for name, value in env.items() if name != "PREFECT_API_URL"}
        results["nothing to do, temporary server"] = pairs(arguments.runs, pipeline, alone)
        stages = f"all {len(read_graph(PROJECT))} stages on MNIST"
        results[stages] = pairs(arguments.full_runs, pipeline, env, "--force")
    head = ["", "flow: process", "flow: run", "`dvc repro`", "added by the flow, median", "pairs"]
    text = [
        "Wall-clock seconds: median (smallest to largest). The process of the flow includes imports, the run does not.",
        table(head, [row(what, times) for what, times in results.items()]),
    ]
    write("flow", "The flow compared with `dvc repro`", ("prefect", "dvc", "torch"), text, results)


if __name__ == "__main__":
    main()
