"""Control how long PyTorch's threads spin while they wait for each other.

Waking a sleeping thread takes longer than many operations of a small network, so threads that spin for a while train
such a network up to twice as fast. But a spinning thread keeps its core from all others, even from the thread that it
waits for: beside a busy process, training with long spins can be ten times slower.

GNU's OpenMP reads the spin count once, when torch loads it. Only one rule can still shorten the spins later: while
there are more OpenMP threads than cores, threads spin at most 100 times (libgomp's manual, "GOMP_SPINCOUNT"). So
`sharing_cores` adds sleeping threads whenever this process has to wait for a core, and removes them when it has the
cores to itself again.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Barrier, Event, Thread

SHORT_SPIN_COUNT = "1000"
SPIN_COUNT = "30001"  # Iterations of a loop. The odd number distinguishes it from a value that the user has set.
TASKS = Path("/proc/self/task")  # One folder for each thread of this process, on Linux.
LOOK_S = 0.1  # Seconds between two measurements of how long the threads waited for a core.
CROWDED = 0.1  # Share of that time; 0.02 is typical of an idle machine, 0.4 or more of one busy process beside this.
QUIET_LOOKS = 10  # Consecutive measurements without crowding after which the threads may spin again.


def set_spin_count() -> None:
    """Choose how long torch's threads spin, unless the user has set GOMP_SPINCOUNT; call this before torch is loaded.

    They spin for long only if the kernel reports how long they wait for a core: otherwise nothing could shorten the
    spins again.
    """
    measurable = Path("/proc/self/schedstat").exists()
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT if measurable else SHORT_SPIN_COUNT)


@contextmanager
def sharing_cores() -> Iterator[None]:
    """Keep spins short in the block for as long as other processes compete for the cores."""
    if os.environ.get("GOMP_SPINCOUNT") != SPIN_COUNT:
        yield
        return
    done = Event()
    watcher = Thread(target=watch, args=(done,))
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def watch(done: Event) -> None:
    """Hold sleeping threads while the threads of this process have to wait for cores, until `done` is set."""
    quiet, waited, looked = QUIET_LOOKS, seconds_without_core(), time.monotonic()
    with ExitStack() as sleeping:
        while not done.wait(LOOK_S):
            waited_before, looked_before = waited, looked
            waited, looked = seconds_without_core(), time.monotonic()
            if waited - waited_before > CROWDED * (looked - looked_before):
                if quiet >= QUIET_LOOKS:
                    sleeping.enter_context(more_threads_than_cores())
                quiet = 0
            else:
                quiet += 1
                if quiet == QUIET_LOOKS:
                    sleeping.close()


def seconds_without_core() -> float:
    """Return the total time that the threads of this process were ready to run without getting a core."""
    waited = 0
    for task in TASKS.iterdir():
        try:
            waited += int((task / "schedstat").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # This thread has just ended.
    return waited / 1e9


@contextmanager
def more_threads_than_cores() -> Iterator[None]:
    """Hold enough sleeping OpenMP threads to have more of them than cores."""
    import torch  # noqa: PLC0415  # It is loaded by now; importing it above would take seconds.

    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    if threads == 1:  # A single thread waits for nobody.
        yield
        return
    # A Python thread that computes gets OpenMP threads of its own, which end with it.
    teams = max(1, -(-(cores + 1 - threads) // (threads - 1)))
    together = Barrier(teams)

    def start_team() -> None:
        torch.ones(1 << 20)  # Large enough for torch to divide it.
        together.wait()

    with ThreadPoolExecutor(teams) as holders:
        for team in [holders.submit(start_team) for _ in range(teams)]:
            team.result()
        yield
