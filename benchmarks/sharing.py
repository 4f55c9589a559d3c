"""Measure how much competing processes slow down a training run: `python -m benchmarks.sharing`.

Recipe `article`, whose steps are the shortest, trains in a fresh process. After a third of its epochs, busy processes
start, one for every two cores; after the second third, they are killed. Threads wait either as in stage `train`, which
shortens the waits while others need the cores (`stages.core.machine.threads`), or with long waits throughout.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from statistics import median

import torch

from benchmarks.report import spread, table, write
from benchmarks.training import begin, in_turn, load_data, project_params, run_epochs
from stages.core.machine.threads import sharing_cores

EPOCHS = 3  # in each third
COMPETITORS = max(1, (os.cpu_count() or 1) // 2)
WAITS: dict[str, Callable[[], AbstractContextManager[object]]] = {"follow": sharing_cores, "long": nullcontext}


def run_once(waits: str, seed: int) -> list[float]:
    """Return the seconds that each epoch took."""
    device = torch.device("cpu")
    recipe = project_params().recipes["article"].model_copy(update={"epochs": 3 * EPOCHS})
    data, seconds = load_data(device), []
    state = begin(recipe, data, device, seed)
    with WAITS[waits](), ExitStack() as competitors:
        epochs = run_epochs(state, recipe, data, seed)
        for epoch in range(3 * EPOCHS):
            if epoch == EPOCHS:
                for _ in range(COMPETITORS):
                    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                    competitors.callback(busy.wait)
                    competitors.callback(busy.kill)
            if epoch == 2 * EPOCHS:
                competitors.close()
            started = time.perf_counter()
            next(epochs)
            seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    results = in_turn("benchmarks.sharing", __doc__, run_once, [*WAITS], runs=5)
    rows = []
    for waits, label in (("follow", "as in stage `train`"), ("long", "long waits throughout")):
        thirds = [[run[start : start + EPOCHS] for start in range(0, 3 * EPOCHS, EPOCHS)] for run in results[waits]]
        alone, beside, after = ([median(run[third]) for run in thirds] for third in range(3))
        ratio = [sum(run[1]) / sum(run[0]) for run in thirds]
        rows.append([label, spread(alone, 2), spread(beside, 2), spread(after, 2), spread(ratio, 1)])
    head = ["waits", "alone, s per epoch", "with the competitor", "alone again", "three epochs with / without it"]
    text = [
        f"Recipe `article`, with {COMPETITORS} busy process{'es' if COMPETITORS > 1 else ''} on the same"
        f" {os.cpu_count()} cores from epoch {EPOCHS + 1} to {2 * EPOCHS}; {len(results['follow'])} runs of each kind,"
        " in turn, each in a fresh process. The figures are medians over three epochs, of which the table shows the"
        " median over the runs (smallest to largest).",
        table(head, rows),
    ]
    write("sharing", "A training run with a competitor for its cores", ("torch",), text, results)


if __name__ == "__main__":
    main()
