"""Test that threads that wait for each other leave the cores to whoever needs them."""

import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread
from typing import Self

import pytest

from stages.core.machine import threads
from tests.conftest import PROJECT

pytestmark = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's statistics of threads")

# For each line that it reads, this program computes on two threads for a second and prints how many threads it has. Its
# argument is the folder in which the kernel, or this test, says how long the threads had to wait for a core.
COMPUTING = """
import os, sys, time
from pathlib import Path
from stages.core.machine import threads
import torch
threads.TASKS, threads.LOOK_S = Path(sys.argv[1]), 0.02
torch.set_num_threads(2)
with threads.sharing_cores():
    for line in sys.stdin:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            torch.ones(1 << 17)
        print(len(os.listdir("/proc/self/task")), flush=True)
"""


class Computing:
    """Run a process that computes while the block runs."""

    def __init__(self, tasks: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        command = [sys.executable, "-c", COMPUTING, str(tasks)]
        self.process = subprocess.Popen(
            command, cwd=PROJECT, env=inherited, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def count_threads(self) -> int:
        """Return how many threads the process has after a second of work."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def spin_count(inherited: dict[str, str]) -> str:
    """Return the spin count of a process that imports the package `stages` in this environment."""
    code = "import os, stages; print(os.environ['GOMP_SPINCOUNT'])"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=PROJECT, env=inherited, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


def test_a_spin_count_that_the_user_sets_is_kept() -> None:
    assert spin_count({}) == threads.SPIN_COUNT
    assert spin_count({"GOMP_SPINCOUNT": "77"}) == "77"


def test_time_without_a_core_only_grows() -> None:
    before = threads.seconds_without_core()
    assert 0 <= before <= threads.seconds_without_core()


@pytest.mark.slow
def test_waits_are_short_while_the_threads_wait_for_cores_and_long_again_afterwards(tmp_path: Path) -> None:
    """GNU's OpenMP spins for a short time only if there are more threads than cores."""
    statistics = tmp_path / "tasks/1/schedstat"
    statistics.parent.mkdir(parents=True)
    statistics.write_text("0 0 0")
    over = Event()

    def be_crowded() -> None:
        """Report that one thread waits for a third of the time."""
        started = time.monotonic()
        while not over.wait(0.01):
            partial = statistics.with_name("partial")
            partial.write_text(f"0 {int((time.monotonic() - started) * 1e9 / 3)} 0")
            partial.replace(statistics)

    with Computing(tmp_path / "tasks") as computing:
        alone = computing.count_threads()
        crowd = Thread(target=be_crowded)
        crowd.start()
        beside = computing.count_threads()
        over.set()
        crowd.join()
        assert beside >= alone + len(os.sched_getaffinity(0))
        assert computing.count_threads() == alone


@pytest.mark.slow
def test_a_competitor_that_joins_later_is_noticed() -> None:
    cores = len(os.sched_getaffinity(0))
    busy: list[subprocess.Popen[bytes]] = []
    with Computing(threads.TASKS) as computing:
        alone = computing.count_threads()
        try:
            busy += [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * cores)]
            assert max(computing.count_threads() for _ in range(5)) >= min(alone, 3) + cores
        finally:
            for each in busy:
                each.kill()
                each.wait()
