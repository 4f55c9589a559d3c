"""Measure the time to a test accuracy of 99% and of 99.5%: `python -m benchmarks.speed` writes benchmarks/speed.md.

Recipe `convnet` is trained with the changes below; these, the epochs and the seeds were fixed beforehand, on the
validation split. Each run is a separate process. Its training time runs from the first batch to the end of the last
epoch and includes augmentation, validation after each epoch and just-in-time compilation of the kernels, but not
imports and loading. The process time includes everything, even the test. On a GPU, the training time is that of a
second training run, for which the first one is the warm-up. The accuracy is that of the last epoch on the test split.
"""

import json
import os
import time
from functools import partial
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import spread, table, write
from benchmarks.training import UNMOVED, Data, begin, changed, in_turn, load_data, project_params, run_epochs
from stages.core.machine.device import autocast_dtype, pick_device
from stages.core.training.config import Recipe
from stages.core.training.loop import count_steps, evaluate_loss
from stages.core.training.state import TrainState

SHORT = UNMOVED | {"loss.label_smoothing": 0.1, "optimizer.lr": 0.02, "schedule.warmup": 0.15}


class Goal(NamedTuple):
    changes: dict[str, Any]  # of recipe `convnet`
    compile_mode: str = "none"


ON_CPU = {
    "99": Goal(
        SHORT
        | {"model.channels": [[16], [16], [64]], "model.stem": "stride", "batch_size": 192, "optimizer.lr": 0.03}
        | {"epochs": 1}
    ),
    "99.5": Goal(
        SHORT | {"model.channels": [[16], [32], [128]], "augmentation.shift": 1, "batch_size": 192, "epochs": 3}
    ),
}
ON_CUDA = {
    "99": Goal(SHORT | {"model.channels": [[32], [32], [64]], "model.stem": "stride", "batch_size": 256, "epochs": 1}),
    "99.5": Goal(
        SHORT
        | {"model.channels": [[32], [64], [256]], "augmentation.shift": 1, "batch_size": 384, "optimizer.lr": 0.04}
        | {"epochs": 3},
        compile_mode="default",
    ),
}
GOALS = {"cpu": ON_CPU, "mps": ON_CPU, "cuda": ON_CUDA}
WARM = (
    "A first training run is the warm-up, including `torch.compile`; the process time ends after it. A second run in"
    " the same process gives the training time and the accuracy. PyTorch's profiler measures the time of all kernels in"
    " a third run; the GPU waits for the rest of the training time."
)


def count_operations(model: nn.Module, images_NCHW: Tensor) -> int:
    """Count the multiplications and additions of the matrix products and convolutions of one step on these images."""
    with FlopCounterMode(display=False) as counter:
        model.train()(images_NCHW).sum().backward()
    return int(counter.get_total_flops())


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second that the device reaches at best, in the product of two large matrices."""
    size = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn((size, size), device=device, dtype=dtype)
    seconds = Timer("matrix @ matrix", globals={"matrix": matrix}, num_threads=torch.get_num_threads())
    return float(2 * size**3 / seconds.blocked_autorange(min_run_time=1).median)


def train_once(recipe: Recipe, compile_mode: str, data: Data, seed: int) -> tuple[TrainState, float]:
    """Return the state at the end of a training run, and the seconds that the run took."""
    state = begin(recipe, data, data.train.inputs.device, seed)
    started = time.perf_counter()
    for _ in run_epochs(state, recipe, data, seed, compile_mode):
        pass
    return state, time.perf_counter() - started


def run_once(name: str, seed: int) -> dict[str, Any]:
    """Return the figures of one run for one goal."""
    device = pick_device(project_params().machine.device)
    goal, data = GOALS[device.type][name], load_data(device)
    recipe = changed(goal.changes)
    run = partial(train_once, recipe, goal.compile_mode, data, seed)
    state, seconds = run()
    _, accuracy = evaluate_loss(state.best_model, data.test, recipe.loss, device)
    figures: dict[str, Any] = {
        "seed": seed,
        "process_seconds": time.time() - psutil.Process().create_time(),
        "spin_count": os.environ.get("GOMP_SPINCOUNT"),
    }
    if device.type == "cuda":
        state, seconds = run()
        _, accuracy = evaluate_loss(state.best_model, data.test, recipe.loss, device)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            run()
        busy = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
        figures["gpu_waits"] = 1 - busy / seconds
    steps = recipe.epochs * count_steps(recipe, data.train.size)
    batch = data.train.inputs[: recipe.batch_size]
    return figures | {
        "train_seconds": seconds,
        "accuracy": accuracy,
        "operations_per_second": steps * count_operations(state.model, batch) / seconds,
        "matmul_rate": matmul_rate(device, autocast_dtype(recipe.precision, device)),
    }


def main() -> None:
    goals = GOALS[pick_device(project_params().machine.device).type]
    results = in_turn("benchmarks.speed", __doc__, run_once, [*goals], runs=5)
    report(goals, results)


def report(goals: dict[str, Goal], results: dict[str, list[dict[str, Any]]]) -> None:
    on_cuda = goals is ON_CUDA
    rows = []
    for name, runs in results.items():
        accuracies = [100 * run["accuracy"] for run in runs]
        rows.append([
            f"{name}%",
            str(len(runs)),
            f"**{sum(accuracies) / len(runs):.2f}** ({min(accuracies):.2f} to {max(accuracies):.2f})",
            spread([run["train_seconds"] for run in runs], 3 if on_cuda else 2),
            *([spread([100 * run["gpu_waits"] for run in runs], 0)] if on_cuda else []),
            spread([run["process_seconds"] for run in runs], 2),
            spread([run["operations_per_second"] / 1e9 for run in runs], 0),
            spread([run["matmul_rate"] / 1e9 for run in runs], 0),
            f"`{json.dumps(goals[name].changes)}`" + (", compiled" if goals[name].compile_mode != "none" else ""),
        ])  # fmt: skip
    head = [
        "goal", "seeds", "test accuracy, %: mean", "training, s: median",
        *(["GPU waits, %: median"] if on_cuda else []),
        "process, s: median", "GFLOP/s: median", "of a large matrix product: median", "changes to recipe `convnet`",
    ]  # fmt: skip
    text = [
        "55,000 training images; smallest to largest in parentheses. The training time includes augmentation"
        f"{' and validation' if on_cuda else ', validation and just-in-time compilation'}, but not imports and loading;"
        " the process time includes everything, even the test. GFLOP/s counts the matrix products and convolutions of"
        " all steps, divided by the training time; for comparison, the product of two large matrices was measured"
        " afterwards in the same process.",
        *([WARM] if on_cuda else []),
        table(head, rows),
    ]
    write("speed", "Time to a test accuracy of 99% and 99.5%", ("torch",), text, results)


if __name__ == "__main__":
    main()
