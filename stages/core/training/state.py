"""Hold what a training step changes."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stages.core.training.config import Recipe
from stages.core.training.optimization import make_optimizer, make_schedule


class TrainState(NamedTuple):
    """Hold everything that a step changes; its `state_dict` is enough to resume the training run."""

    model: nn.Module
    average: nn.Module | None  # a copy of the model that follows its weights and statistics as a moving average
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler

    @property
    def best_model(self) -> nn.Module:
        """Return the model to evaluate and keep: the moving average if the recipe has one."""
        return self.average or self.model

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._asdict().items() if part}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._asdict().items():
            if part:
                part.load_state_dict(state[name])


def create_state(recipe: Recipe, model: nn.Module, steps: int) -> TrainState:
    """Return the state at the start of a training run of `steps` steps, for a model that is on its device."""
    optimizer = make_optimizer(model, recipe.optimizer)
    schedule = make_schedule(optimizer, recipe.schedule, steps)
    average = copy.deepcopy(model) if recipe.regularization.ema else None
    return TrainState(model, average, optimizer, schedule)


def moving_average_step(average: nn.Module, model: nn.Module, decay: float) -> Callable[[], None]:
    """Return a function that moves `average` one step towards `model`, as long as both keep their tensors.

    PyTorch's AveragedModel does the same but waits for a GPU at each step.
    """
    averages, latest = (
        [value for value in each.state_dict().values() if value.is_floating_point()] for each in (average, model)
    )
    return partial(get_ema_multi_avg_fn(decay), averages, latest, 0)
