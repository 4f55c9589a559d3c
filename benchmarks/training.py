"""Trainings of benchmarks: on the project's normalized data, in one process, as stage `train` does them."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from stages.core.runtime import tune_process  # FIXME
from tensordict import TensorDict

from benchmarks.report import PROJECT
from stages import train
from stages.core import params
from stages.core.config.params import PARAMS
from stages.core.nets.registry import build_model
from stages.core.training.config import Recipe

SHAPE, CLASSES = (1, 28, 28), 10
UNMOVED = {f"augmentation.{kind}": 0 for kind in ("shift", "rotation", "scale", "shear", "elastic")}


def changed(changes: Mapping[str, Any]) -> Recipe:
    """Recipe `convnet` with other values of fields such as `loss.label_smoothing`."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(shutil.copy(PROJECT / PARAMS, scratch))
        params.override_params(path, {f"recipes.convnet.{field}": value for field, value in changes.items()})
        return params.load_params(path).recipes["convnet"]


def load_splits(device: torch.device) -> dict[str, TensorDict]:
    """Train, validation and test, by name."""
    folder, names = PROJECT / train.NORMALIZED, ("train", "validation", "test")
    return {name: TensorDict.load_memmap(str(folder / name)).to(device) for name in names}


def begin(recipe: Recipe, device: torch.device, seed: int, train_images: int) -> train.Training:
    """A fresh network on `device` and all that trains it."""
    tune_process(device)
    torch.manual_seed(seed)
    model = build_model(recipe.model, SHAPE, CLASSES).to(device).to(memory_format=torch.channels_last)
    return train.start_training(recipe, model, train_images)


def in_fresh_process(benchmark: str, name: str, seed: int) -> Any:
    """What such a benchmark prints as JSON with `--once name seed`: what ran before would change memory and threads."""
    command = [sys.executable, "-m", benchmark, "--once", name, str(seed)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
