"""Measure how much a model changes if numbers are summed in a different order: `python -m benchmarks.differences`.

Writes benchmarks/differences.md. Stage `train` trains recipe `convnet` under each of the conditions below, and each
model is compared with the first one. The last condition, another seed, shows the scale.
"""

import os
import subprocess
import sys
from typing import Any, NamedTuple

import torch

from benchmarks.recipes import ready_to_train
from benchmarks.report import table, write
from benchmarks.training import load_data
from stages.core.config.params import PARAMS, override_params
from stages.core.evaluation.inference import infer
from stages.core.files.layout import MODEL
from stages.core.nets.checkpoint import load_model
from stages.core.training.batches import Examples

OLD_PROCESSOR = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}

CPU = torch.device("cpu")


class Condition(NamedTuple):
    knobs: dict[str, Any]
    environment: dict[str, str]


CONDITIONS = {
    "as it is": Condition({}, {}),
    "the same again": Condition({}, {}),
    "one thread": Condition({}, {"OMP_NUM_THREADS": "1"}),
    "kernels of an older processor (SSE 4)": Condition({}, OLD_PROCESSOR),
    "two processes": Condition({"machine.processes": 2}, {}),
    "bfloat16": Condition({"recipes.convnet.precision": "bfloat16"}, {}),
    "another seed": Condition({"seed": 2}, {}),
}


class Trained(NamedTuple):
    weights: torch.Tensor  # float32 [parameters]
    logits: torch.Tensor  # float32 [test images, classes]


def train_under(condition: Condition, test: Examples) -> Trained:
    """Return the model that stage `train` produces under this condition, as its weights and logits."""
    with ready_to_train() as folder:
        knobs = {"recipe": "convnet", "recipes.convnet.precision": "float32", "machine.device": "cpu"}
        override_params(folder / PARAMS, knobs | condition.knobs)
        environment = os.environ | condition.environment
        subprocess.run([sys.executable, "-m", "stages.train"], cwd=folder, env=environment, check=True)
        model, _ = load_model(folder / MODEL)
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    return Trained(weights, infer(model, test.inputs, CPU, 1000))


def main() -> None:
    test = load_data(CPU).test
    results: dict[str, dict[str, float]] = {}
    first: Trained | None = None
    for name, condition in CONDITIONS.items():
        print(f"{name}:", flush=True)
        trained = train_under(condition, test)
        first = first or trained
        guesses_N, firsts_N = trained.logits.argmax(1), first.logits.argmax(1)
        results[name] = {
            "weights": (trained.weights - first.weights).abs().max().item(),
            "logits": (trained.logits - first.logits).abs().max().item(),
            "labels": (guesses_N != firsts_N).sum().item(),
            "accuracy": (guesses_N == test.labels).double().mean().item(),
        }
    rows = [
        [name, f"{run['weights']:.1g}", f"{run['logits']:.1g}", f"{run['labels']:.0f}", f"{run['accuracy']:.2%}"]
        for name, run in results.items()
    ]
    head = ["condition", "weights: largest difference", "logits: largest difference",
            f"different labels, of {test.size:,}", "test accuracy"]  # fmt: skip
    text = [
        "Recipe `convnet` on MNIST, in float32 unless stated otherwise, one run per row, compared with the first row."
        f" {', '.join(f'`{name}={value}`' for name, value in OLD_PROCESSOR.items())} simulate the older processor.",
        table(head, rows),
    ]
    write("differences", "Effect of the order of summation on a model", ("torch",), text, results)


if __name__ == "__main__":
    main()
