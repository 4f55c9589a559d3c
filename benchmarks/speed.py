"""Measure the time to 99 % and to 99.5 % test accuracy: `python -m benchmarks.speed` writes benchmarks/speed.md.

Recipe `convnet` with the changes below; they, the epochs and the seeds were fixed on the validation split beforehand.
Each run is a process of its own. Its training clock runs from the first batch to the end of the last epoch, the
augmentation, the validation after each epoch and the kernels' just-in-time compilation inside, imports and loading
outside; the process clock has everything inside, also the test. On a GPU the training clock is that of a second
training, for which the first one was the warm-up. The accuracy is of the last epoch on the test split.
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
    "A first training is the warm-up, `torch.compile` inside; after it the process clock stops. A second one, in the"
    " same process, has the training clock and the accuracy. The GPU waits where no kernel runs: the time of all"
    " kernels of a third training, which PyTorch's profiler watched, is missing from that of the second."
)


def count_operations(model: nn.Module, images_NCHW: Tensor) -> int:
    """Count the multiplications and additions of the matrix products and convolutions of one step on these images."""
    with FlopCounterMode(display=False) as counter:
        model.train()(images_NCHW).sum().backward()
    return int(counter.get_total_flops())


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return how many of them the device makes in a second of nothing else: in the product of two large matrices."""
    size = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn((size, size), device=device, dtype=dtype)
    seconds = Timer("matrix @ matrix", globals={"matrix": matrix}, num_threads=torch.get_num_threads())
    return float(2 * size**3 / seconds.blocked_autorange(min_run_time=1).median)


def train_once(recipe: Recipe, compile_mode: str, data: Data, seed: int) -> tuple[TrainState, float]:
    """Return the state at the end of a training run, and the seconds that it took."""
    state = begin(recipe, data, data.train.inputs.device, seed)
    started = time.perf_counter()
    for _ in run_epochs(state, recipe, data, seed, compile_mode):
        pass
    return state, time.perf_counter() - started


def run_once(name: str, seed: int) -> dict[str, Any]:
    """Return the figures of one run towards one goal."""
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
            f"{name} %",
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
        "process, s: median", "GFLOP/s: median", "of a large matrix product: median", "recipe `convnet`, but",
    ]  # fmt: skip
    text = [
        "55,000 training images; smallest to largest in brackets. The training clock has augmentation and validation"
        f" inside{'' if on_cuda else ', just-in-time compilation too'}, imports and loading outside; the process clock"
        " has all inside, also the test. GFLOP/s: the matrix products and convolutions of all steps by the training"
        " clock, beside the product of two large matrices, measured after it in the same process.",
        *([WARM] if on_cuda else []),
        table(head, rows),
    ]
    write("speed", "Time to 99 % and 99.5 %", ("torch",), text, results)


if __name__ == "__main__":
    main()
