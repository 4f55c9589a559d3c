"""Measure what competitors for the cores cost a training run: `python -m benchmarks.sharing`.

Recipe `article`, whose steps are the shortest, trains in a fresh process. After a third of its epochs, busy processes
start, one for every two cores; after the second third, they are killed. The recipe trains once as the stage does, with
waits that are shortened while others need the cores (`stages.core.threads`), and once with long waits throughout.
"""

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from statistics import median

import torch

from benchmarks.report import PROJECT, spread, table, write
from benchmarks.training import begin, in_fresh_process, load_splits
from stages import train
from stages.core import params
from stages.core.config.params import PARAMS
from stages.core.machine.threads import sharing_cores

EPOCHS = 3  # in each third
COMPETITORS = max(1, (os.cpu_count() or 1) // 2)
WAITS: dict[str, Callable[[], AbstractContextManager[object]]] = {"follow": sharing_cores, "long": nullcontext}


def run_once(waits: str, seed: int) -> list[float]:
    """Return the seconds of each epoch."""
    device = torch.device("cpu")
    recipe = params.load_params(PROJECT / PARAMS).recipes["article"].model_copy(update={"epochs": 3 * EPOCHS})
    splits, seconds = load_splits(device), []
    training = begin(recipe, device, seed, len(splits["train"]))
    with WAITS[waits](), ExitStack() as competitors:
        epochs = train.fit(training, recipe, splits["train"], splits["validation"], seed)
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
    parser = ArgumentParser("python -m benchmarks.sharing", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each kind, taken in turn (default: 5)")
    parser.add_argument("--once", nargs=2, metavar=("WAITS", "SEED"), help="train once here; print the figures as JSON")
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(run_once(arguments.once[0], int(arguments.once[1]))))
        return
    results: dict[str, list[list[float]]] = {waits: [] for waits in WAITS}
    for seed in range(1, arguments.runs + 1):
        for waits, runs in results.items():
            runs.append(in_fresh_process("benchmarks.sharing", waits, seed))
            print(waits, [round(seconds, 2) for seconds in runs[-1]], flush=True)
    rows = []
    for waits, label in (("follow", "as the stage trains"), ("long", "long waits throughout")):
        thirds = [[run[start : start + EPOCHS] for start in range(0, 3 * EPOCHS, EPOCHS)] for run in results[waits]]
        alone, beside, after = ([median(run[third]) for run in thirds] for third in range(3))
        ratio = [sum(run[1]) / sum(run[0]) for run in thirds]
        rows.append([label, spread(alone, 2), spread(beside, 2), spread(after, 2), spread(ratio, 1)])
    head = ["waits", "alone, s an epoch", "beside the competitor", "alone again", "three epochs beside / alone"]
    text = [
        f"Recipe `article`, {COMPETITORS} busy process{'es' if COMPETITORS > 1 else ''} beside it on {os.cpu_count()}"
        f" cores from epoch {EPOCHS + 1} to {2 * EPOCHS}; {arguments.runs} runs of each kind, in turn, each in a fresh"
        " process; the median of three epochs, and of those over the runs the median (smallest to largest).",
        table(head, rows),
    ]
    write("sharing", "A training run and a competitor for its cores", ("torch",), text, results)


if __name__ == "__main__":
    main()
