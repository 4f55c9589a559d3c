"""Train in benchmarks as stage `train` does: on the project's data, in this process or in a fresh one for each run."""

import json
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.report import PROJECT
from stages.core.config.params import PARAMS, Params, load_params, override_params
from stages.core.data.splits import read_dataset
from stages.core.examples.config import Augmentation
from stages.core.examples.spec import Spec
from stages.core.nets.registry import build_model
from stages.core.training.batches import Examples, as_tensors, place
from stages.core.training.config import Recipe
from stages.core.training.loop import count_steps, train_epochs
from stages.core.training.progress import Row
from stages.core.training.state import TrainState, create_state
from stages.train import tune_process

UNMOVED = {f"augmentation.{kind}": 0 for kind in Augmentation.model_fields}


class Data(NamedTuple):
    """Hold the project's data set, with its examples on one device."""

    spec: Spec
    train: Examples
    validation: Examples
    test: Examples


def project_params() -> Params:
    return load_params(PROJECT / PARAMS)


def changed(changes: Mapping[str, Any]) -> Recipe:
    """Return recipe `convnet` with changes to fields such as `loss.label_smoothing`."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(shutil.copy(PROJECT / PARAMS, scratch))
        override_params(path, {f"recipes.convnet.{field}": value for field, value in changes.items()})
        return load_params(path).recipes["convnet"]


def load_data(device: torch.device) -> Data:
    """Return the data set that stage `normalize` wrote."""
    with chdir(PROJECT):
        dataset = read_dataset()
        splits = (place(as_tensors(dataset.read(name)), device) for name in ("train", "validation", "test"))
        return Data(dataset.spec, *splits)


def take(examples: Examples, rows_N: Tensor | slice) -> Examples:
    """Return some of the examples."""
    return Examples(examples.inputs[rows_N], examples.labels[rows_N])


def begin(recipe: Recipe, data: Data, device: torch.device, seed: int) -> TrainState:
    """Return the state at the start of a training run on `data.train`, with a fresh network on `device`."""
    tune_process(device)
    torch.manual_seed(seed)
    model = build_model(recipe.model, data.spec).to(device).to(memory_format=torch.channels_last)
    return create_state(recipe, model, recipe.epochs * count_steps(recipe, data.train.size))


def run_epochs(state: TrainState, recipe: Recipe, data: Data, seed: int, compile_mode: str = "none") -> Iterator[Row]:
    """Train in place; yield the row of the history after each epoch."""
    machine = project_params().machine.model_copy(update={"processes": 1, "compile": compile_mode})
    return train_epochs(state, recipe, data.train, data.validation, seed, machine=machine)


def in_turn(
    benchmark: str, about: str | None, run: Callable[[str, int], Any], names: Sequence[str], runs: int
) -> dict[str, list[Any]]:
    """Return the results of `run(name, seed)` by name, for seeds 1, 2, ..., taking all names in turn.

    Each call has a fresh process, because an earlier call would affect memory and threads. That process is
    `python -m BENCHMARK --once NAME SEED`, in which this function prints the result as JSON and exits. `runs` is the
    default of the option `--runs`, the number of seeds.
    """
    parser = ArgumentParser(f"python -m {benchmark}", description=about)
    parser.add_argument(
        "--runs", type=int, default=runs, help=f"runs of each kind, with seeds 1, 2, ... (default: {runs})"
    )
    parser.add_argument(
        "--once",
        nargs=2,
        metavar=("NAME", "SEED"),
        help=f"run {' or '.join(names)} once, and print the figures as JSON",
    )
    arguments = parser.parse_args()
    if arguments.once:
        name, seed = arguments.once
        if name not in names:
            parser.error(f"--once: found {name}, must be one of {', '.join(names)}")
        print(json.dumps(run(name, int(seed))))
        sys.exit()
    if arguments.runs < 1:
        parser.error("--runs: must be at least 1")
    results: dict[str, list[Any]] = {name: [] for name in names}
    for number in range(1, arguments.runs + 1):
        for name, outcomes in results.items():
            command = [sys.executable, "-m", benchmark, "--once", name, str(number)]
            output = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout
            outcomes.append(json.loads(output))
            print(name, outcomes[-1], flush=True)
    return results
