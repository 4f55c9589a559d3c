"""Provide training runs of a second, on images whose class is easy to see."""

from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from stages.core.examples.config import Augmentation
from stages.core.nets.config import NetConfig
from stages.core.nets.registry import build_model
from stages.core.training.batches import Examples
from stages.core.training.config import CrossEntropy, Machine, Recipe
from stages.core.training.loop import count_steps, train_epochs
from stages.core.training.progress import Row
from stages.core.training.state import TrainState, create_state
from tests.conftest import make_images
from tests.core.nets.small_networks import DENSENET, GRU, LSTM, RESNET, TRANSFORMER, VGG, convnet, make_spec
from tests.core.nets.small_networks import WAVENET as SHORT_WAVENET

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LOSS = CrossEntropy(name="cross_entropy", label_smoothing=0.0, class_weight=0.0)
MLP = {"name": "mlp", "hidden": [64], "dropout": 0.0}
CONVNET = convnet([8], [16]).model_dump()
WAVENET = SHORT_WAVENET.model_copy(update={"stride": 7, "layers": 7, "channels": 16})  # Its last steps see all others.
OTHERS = [config.model_dump() for config in (VGG, RESNET, DENSENET, LSTM, GRU, TRANSFORMER, WAVENET)]
NO_AUGMENTATION = dict.fromkeys(Augmentation.model_fields, 0)
NO_REGULARIZATION = {"l1": 0.0, "ema": 0.0, "patience": 0}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}


def make_machine(**settings: Any) -> Machine:
    """Return the settings of one process on the CPU, but for these."""
    plain = {"device": "cpu", "processes": 1, "cuda_graph": True, "compile": "none"}
    return Machine.model_validate(plain | settings)


def make_recipe(model: dict[str, Any], **settings: Any) -> Recipe:
    """Return a plain recipe, but for these settings: no augmentation, no schedule, float32."""
    plain = {
        "model": model,
        "loss": LOSS.model_dump(),
        "optimizer": {"name": "adamw", "lr": 0.005, "weight_decay": 0.0},
        "schedule": {"name": "constant"},
        "augmentation": NO_AUGMENTATION,
        "regularization": NO_REGULARIZATION,
        "precision": "float32",
        "batch_size": 20,
        "epochs": 1,
    }
    return TypeAdapter(Recipe).validate_python(plain | settings)


def make_model(config: NetConfig, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return build_model(config, make_spec())


def make_examples(count: int, seed: int = 1) -> Examples:
    images, labels = make_images(count, seed)
    return Examples(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())


def on(device: torch.device, examples: Examples) -> Examples:
    return Examples(examples.inputs.to(device), examples.labels.to(device))


def make_state(recipe: Recipe, examples: int, device: torch.device = CPU) -> TrainState:
    """Return the state at the start of training on so many examples; its first weights are always the same."""
    return create_state(recipe, make_model(recipe.model).to(device), recipe.epochs * count_steps(recipe, examples))


def run_training(
    recipe: Recipe,
    seed: int = 1,
    train: Examples | None = None,
    device: torch.device = CPU,
    machine: Machine | None = None,
    *,
    validation: Examples | None = None,
    **options: Any,
) -> tuple[list[Row], TrainState]:
    """Train to the end; return the history and the state. `seed` is that of the order and the augmentation."""
    train = train or on(device, make_examples(50))
    state = make_state(recipe, train.size, device)
    validation = validation or on(device, make_examples(30, seed=2))
    epochs = train_epochs(state, recipe, train, validation, seed, machine=machine or make_machine(), **options)
    return list(epochs), state


def weights_of(state: TrainState) -> dict[str, Tensor]:
    return state.best_model.state_dict()


def same_weights(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)
