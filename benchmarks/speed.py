"""Time to 99 % and to 99.5 % test accuracy: `python -m benchmarks.speed` writes benchmarks/speed.md.

Recipe `convnet` with the changes below; they, the epochs and the seeds were fixed on the validation split beforehand.
Each run is a process of its own. Its training clock runs from the fresh model to the end of the last epoch, the
augmentation, the validation after each epoch and the kernels' just-in-time compilation inside, imports and loading
outside; the process clock has everything inside, also the test. The accuracy is of the last epoch on the test split.
"""

import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import PROJECT, spread, table, write
from benchmarks.training import UNMOVED, begin, changed, load_splits
from stages import train
from stages.core import params
from stages.core.runtime import autocast_dtype, keep_freed_memory, pick_device

SHORT = UNMOVED | {"loss.label_smoothing": 0.1, "optimizer.lr": 0.02, "schedule.warmup": 0.15}
GOALS: dict[str, dict[str, Any]] = {
    "99": SHORT | {"model.channels": [[16], [16], [64]], "model.stem": "stride", "epochs": 1},
    "99.5": SHORT | {"model.channels": [[16], [32], [128]], "augmentation.shift": 1, "batch_size": 192, "epochs": 3},
}


def count_operations(model: nn.Module, images_NCHW: Tensor) -> int:
    """Multiplications and additions of the matrix products and convolutions of one step on these images."""
    with FlopCounterMode(display=False) as counter:
        model.train()(images_NCHW).sum().backward()
    return int(counter.get_total_flops())


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The same in a second where nothing else is in the way: in the product of two large matrices."""
    matrix = torch.randn((2048, 2048), device=device, dtype=dtype)
    seconds = Timer("matrix @ matrix", globals={"matrix": matrix}, num_threads=torch.get_num_threads())
    return float(2 * 2048**3 / seconds.blocked_autorange(min_run_time=1).median)


def run_once(goal: str, seed: int) -> dict[str, float]:
    keep_freed_memory()
    recipe, device = changed(GOALS[goal]), pick_device(params.load_params(PROJECT / params.PARAMS).device)
    splits = load_splits(device)
    data = splits["train"]
    started = time.perf_counter()
    training = begin(recipe, device, seed, len(data))
    for _ in train.fit(training, recipe, data, splits["validation"], seed):
        pass
    seconds = time.perf_counter() - started
    _, accuracy = train.assess(training.result, splits["test"], recipe.loss, device)
    process_seconds = time.time() - psutil.Process().create_time()
    steps, batch = recipe.epochs * train.count_steps(recipe, len(data)), data["image"][: recipe.batch_size]
    return {
        "seed": seed,
        "train_seconds": seconds,
        "process_seconds": process_seconds,
        "accuracy": accuracy,
        "operations_per_second": steps * count_operations(training.model, batch) / seconds,
        "matmul_rate": matmul_rate(device, autocast_dtype(recipe.precision, device)),
    }


def main() -> None:
    parser = ArgumentParser("python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="1 to this (default: 5)")
    parser.add_argument("--once", nargs=2, metavar=("GOAL", "SEED"), help="one run here; its figures as JSON")
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(run_once(arguments.once[0], int(arguments.once[1]))))
        return
    results: dict[str, list[dict[str, float]]] = {goal: [] for goal in GOALS}
    for seed in range(1, arguments.seeds + 1):
        for goal, runs in results.items():
            command = [sys.executable, "-m", "benchmarks.speed", "--once", goal, str(seed)]
            runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
            print(goal, runs[-1], flush=True)
    rows = []
    for goal, runs in results.items():
        accuracies = [100 * run["accuracy"] for run in runs]
        rows.append([
            f"{goal} %",
            f"**{sum(accuracies) / len(runs):.2f}** ({min(accuracies):.2f} to {max(accuracies):.2f})",
            spread([run["train_seconds"] for run in runs], 2),
            spread([run["process_seconds"] for run in runs], 2),
            spread([run["operations_per_second"] / 1e9 for run in runs], 0),
            spread([run["matmul_rate"] / 1e9 for run in runs], 0),
            f"`{json.dumps(GOALS[goal])}`",
        ])  # fmt: skip
    head = [
        "goal", "test accuracy, %: mean", "training, s: median", "process, s: median", "GFLOP/s: median",
        "of a large matrix product: median", "recipe `convnet`, but",
    ]  # fmt: skip
    text = [
        f"Seeds 1 to {arguments.seeds}, 55,000 training images; smallest to largest in brackets. The training clock has"
        " augmentation, validation and just-in-time compilation inside, imports and loading outside; the process clock"
        " has all inside, also the test. GFLOP/s: the matrix products and convolutions of all steps by the training"
        " clock, beside the product of two matrices of 2048x2048, measured after it in the same process.",
        table(head, rows),
    ]
    write("speed", "Time to 99 % and 99.5 %", ("torch",), text, results)


if __name__ == "__main__":
    main()
