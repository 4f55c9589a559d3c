"""The state is all that a step changes, and its moving average follows the weights."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from stages.core.training.loop import train_epochs
from tests.core.training.small_runs import (
    CONVNET,
    MLP,
    NO_REGULARIZATION,
    SGD,
    make_examples,
    make_machine,
    make_recipe,
    make_state,
    run_training,
    same_weights,
    weights_of,
)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_the_moving_average_is_calmer_than_the_weights() -> None:
    regularization = NO_REGULARIZATION | {"ema": 0.9}
    recipe = make_recipe(MLP, optimizer=SGD | {"lr": 0.3}, batch_size=5, regularization=regularization)
    state = make_state(recipe, 50)
    raw, averaged = [], []

    def note() -> None:
        assert state.average
        raw.append(flat(state.model))
        averaged.append(flat(state.average))

    train, validation = make_examples(50), make_examples(30, seed=2)
    train.labels[::3] = (train.labels[::3] + 1) % 10
    list(train_epochs(state, recipe, train, validation, 1, machine=make_machine(), on_step=note))
    for before, now, weights in zip(averaged, averaged[1:], raw[1:], strict=False):
        torch.testing.assert_close(now, 0.9 * before + 0.1 * weights)
    moves = [sum(float((b - a).norm()) for a, b in pairwise(each)) for each in (raw, averaged)]
    assert moves[1] < moves[0]
    assert state.best_model is state.average


def test_without_a_moving_average_the_model_itself_is_the_best() -> None:
    state = make_state(make_recipe(MLP), 50)
    assert state.average is None
    assert state.best_model is state.model


def test_a_state_that_was_saved_and_loaded_trains_on_as_before() -> None:
    settings = {
        "optimizer": {"name": "adamw", "lr": 0.003, "weight_decay": 0.01},
        "schedule": {"name": "one_cycle", "warmup": 0.25},
        "regularization": NO_REGULARIZATION | {"ema": 0.9},
        "epochs": 3,
    }
    recipe = make_recipe(CONVNET | {"dropout": 0.2}, **settings)
    rows, undisturbed = run_training(recipe)

    train, validation, machine = make_examples(50), make_examples(30, seed=2), make_machine()
    first, resumed = make_state(recipe, 50), make_state(recipe, 50)
    epochs = train_epochs(first, recipe, train, validation, 1, machine=machine)
    assert [next(epochs), next(epochs)] == rows[:2]
    resumed.load_state_dict(first.state_dict())
    assert list(train_epochs(resumed, recipe, train, validation, 1, machine=machine, first_epoch=3)) == rows[2:]
    assert same_weights(weights_of(resumed), weights_of(undisturbed))
