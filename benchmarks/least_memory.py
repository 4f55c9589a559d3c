"""Find the least memory with which each stage succeeds on the real data: `python -m benchmarks.least_memory`.

Writes benchmarks/least_memory.md. `dvc repro` runs each stage in a checkout of the committed revision, under a limit
that is raised until the stage succeeds. This needs Linux and permission to create a control group (usually root).
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.memory import control_group
from benchmarks.report import PROJECT, table, write
from flows.graph import read_graph
from flows.workspace import isolated
from stages.core.config.params import PARAMS, load_params, override_params
from stages.core.files.atomic import remove

FIRST, STEP = 500_000_000, 100_000_000  # bytes


class Passed(NamedTuple):
    limit: int  # bytes of memory
    seconds: float


def run(folder: Path, stage: str, limit: int) -> bool:
    """Return whether the stage, with the `dvc repro` that runs it, succeeds with `limit` bytes of memory."""
    with control_group(limit) as group:
        inside = f"echo $$ > {group.procs} && exec {sys.executable} -m dvc repro --force --single-item {stage}"
        log = folder / "least_memory.log"
        with (
            log.open("w") as output,
            subprocess.Popen(
                ["sh", "-c", inside], cwd=folder, stdout=output, stderr=output, start_new_session=True
            ) as process,
        ):
            status = process.wait()
            with suppress(ProcessLookupError):  # If the kernel has killed dvc, its stage is still running.
                os.killpg(process.pid, signal.SIGKILL)
        while group.procs.read_text():
            time.sleep(0.1)
    killed = any(word in log.read_text() for word in ("exited with -9", "Killed", "MemoryError", "allocate"))
    assert status == 0 or killed or status < 0, log.read_text()
    return status == 0


def least(folder: Path, stage: str) -> Passed:
    limit = FIRST
    while True:
        remove(folder / "artifacts/checkpoints")  # Otherwise the next try would resume the last one.
        started = time.perf_counter()
        if run(folder, stage, limit):
            return Passed(limit, time.perf_counter() - started)
        limit += STEP


def main() -> None:
    with isolated(PROJECT, "least_memory") as folder:
        recipe = load_params(folder / PARAMS).recipe
        override_params(folder / PARAMS, {f"recipes.{recipe}.epochs": 1})  # More epochs would take the same memory.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        needs: dict[str, Passed] = {}
        for stage in read_graph(folder):
            needs[stage] = least(folder, stage)
            print(f"{stage}: {needs[stage].limit / 1e9:.2f} GB, {needs[stage].seconds:.0f} s", flush=True)
    rows = [[stage, f"{need.limit / 1e9:.2f}", f"{need.seconds:.0f}"] for stage, need in needs.items()]
    text = [
        f"Each stage is run by `dvc repro --force`, with recipe `{recipe}` for one epoch, in a control group that"
        " counts the memory of its processes and the pages of the files that they read and write. The limit is raised"
        f" by {STEP / 1e9} GB until the stage succeeds.",
        table(["stage", "lowest sufficient limit, GB", "seconds with it"], rows),
    ]
    write(
        "least_memory",
        "The least memory that each stage needs",
        ("torch", "onnxruntime", "dvc"),
        text,
        {stage: need._asdict() for stage, need in needs.items()},
    )


if __name__ == "__main__":
    main()
