"""The networks learn, the same way each time, and the history says how well."""

from math import log
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.data.splits import Split
from stages.core.examples.augmentation import augment
from stages.core.files.arrays import map_array, write_array
from stages.core.files.schemas import history
from stages.core.files.tables import validate
from stages.core.machine.device import autocast_dtype
from stages.core.nets.mlp import mlp
from stages.core.nets.registry import build_model
from stages.core.training import loop
from stages.core.training.batches import Examples, as_tensors, batches
from stages.core.training.config import Loss, Mse
from stages.core.training.optimization import compute_loss, l1_norm
from stages.core.training.progress import Row
from stages.core.training.state import TrainState, create_state
from tests.core.nets.small_networks import make_spec
from tests.core.nets.small_networks import mlp as mlp_config
from tests.core.training.small_runs import (
    CONVNET,
    CPU,
    LOSS,
    MLP,
    NO_AUGMENTATION,
    NO_REGULARIZATION,
    OTHERS,
    SGD,
    make_examples,
    make_machine,
    make_model,
    make_recipe,
    make_state,
    run_training,
    same_weights,
    weights_of,
)

SMOOTH, MSE = LOSS.model_copy(update={"label_smoothing": 0.1}), Mse(name="mse", class_weight=0.0)


def make_noise(labels_N: Tensor) -> Examples:
    """Return images of random pixels with these labels: nothing can be learned but the images themselves."""
    generator = torch.Generator().manual_seed(1)
    return Examples(torch.randint(256, (len(labels_N), 1, 28, 28), dtype=torch.uint8, generator=generator), labels_N)


@pytest.mark.parametrize("model", [MLP, CONVNET], ids=lambda model: model["name"])
def test_loss_starts_at_that_of_guessing(model: dict[str, Any]) -> None:
    noise = make_noise(torch.randint(10, (500,), generator=torch.Generator().manual_seed(2)))
    loss, _ = loop.evaluate_loss(make_model(make_recipe(model).model), noise, LOSS, CPU)
    assert loss == pytest.approx(log(10), abs=0.1)


@pytest.mark.parametrize("model", [MLP, CONVNET, *OTHERS], ids=lambda model: model["name"])
def test_one_batch_can_be_learned_by_heart(model: dict[str, Any]) -> None:
    adamw = {"name": "adamw", "lr": 0.01, "weight_decay": 0.0}
    recipe, batch = make_recipe(model, epochs=300, optimizer=adamw, batch_size=10), make_noise(torch.arange(10))
    epochs = loop.train_epochs(make_state(recipe, 10), recipe, batch, batch, 1, machine=make_machine())
    learned = next((row for row in epochs if row["train_loss"] < 0.05), None)
    assert learned, "not within 300 epochs"
    assert learned["train_accuracy"] == 1


def test_evaluate_loss_is_the_mean_over_all_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "EVAL_BATCH_SIZE", 7)
    examples = make_examples(50)
    model = make_model(make_recipe(CONVNET).model)
    loss, accuracy = loop.evaluate_loss(model, examples, LOSS, CPU)
    logits = model.eval()(examples.inputs)
    assert loss == pytest.approx(F.cross_entropy(logits, examples.labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == examples.labels).double().mean().item())


def test_gradient_of_a_linear_layer_is_the_closed_form() -> None:
    """For the loss 1/2 |y - t|^2 of an example, averaged over N examples, dL/dW = (1/N) sum (y - t) x.

    PyTorch's MSE is (1/NK) sum (y - t)^2 over K outputs: twice that, divided by K.
    """
    N, D, K = 16, 12, 5
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn((N, D), generator=generator).double(), torch.randn((N, K), generator=generator).double()
    model = mlp(mlp_config(), (D,), K).double()
    y = model(x)
    F.mse_loss(y, t).backward()
    weight, bias = model.parameters()
    errors = (y - t).detach()
    closed_form = torch.stack([torch.outer(error, image) for error, image in zip(errors, x, strict=True)]).sum(0) / N
    assert weight.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(weight.grad, 2 / K * closed_form)
    torch.testing.assert_close(bias.grad, 2 / K * errors.sum(0) / N)


@pytest.mark.parametrize("model", [MLP, CONVNET], ids=lambda model: model["name"])
def test_same_seed_same_weights(model: dict[str, Any]) -> None:
    augmentation = NO_AUGMENTATION | {"shift": 2, "elastic": 1.0, "flip": 0.5, "mixup": 0.4, "cutmix": 1.0}
    recipe = make_recipe(model | {"dropout": 0.2}, augmentation=augmentation, epochs=2)
    first, again, other = (weights_of(run_training(recipe, seed)[1]) for seed in (1, 1, 2))
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_random_streams_have_nothing_in_common() -> None:
    runs = [(seed, epoch) for seed in (1, 4097) for epoch in (1, 2)]
    names: list[tuple[object, ...]] = [(use, *run) for use in ("order", "augmentation") for run in runs]
    names += [("dropout", *run, rank) for run in runs for rank in (0, 1)]
    generators = (torch.Generator().manual_seed(loop.derive_seed(*name)) for name in names)
    assert len({tuple(torch.rand(2, generator=generator).tolist()) for generator in generators}) == len(names)


def test_augmentation_is_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the places in an image would be wrong by parts of a pixel."""
    precise = []

    def spy(*arguments: Any, **options: Any) -> Tensor:
        precise.append(not torch.is_autocast_enabled("cpu"))
        return augment(*arguments, **options)

    monkeypatch.setattr(loop, "augment", spy)
    run_training(make_recipe(CONVNET, precision="bfloat16", augmentation=NO_AUGMENTATION | {"shift": 2}))
    assert precise
    assert all(precise)


@pytest.mark.parametrize(
    "model",
    # A processor without bfloat16 takes long to compute a large network in it.
    [pytest.param(model, marks=pytest.mark.slow) if model["name"] == "resnet" else model for model in OTHERS],
    ids=lambda model: model["name"],
)
def test_bfloat16_computes_nearly_the_same(model: dict[str, Any]) -> None:
    if model["name"] == "lstm" and autocast_dtype("auto", CPU) != torch.bfloat16:
        pytest.skip("an LSTM computes in bfloat16 only on processors that have it")
    slow = SGD | {"lr": 0.001}
    rows = {
        dtype: run_training(make_recipe(model, precision=dtype, optimizer=slow))[0][0]
        for dtype in ("float32", "bfloat16")
    }
    for name in ("train_loss", "validation_loss"):
        assert rows["bfloat16"][name] != rows["float32"][name]
        assert rows["bfloat16"][name] == pytest.approx(rows["float32"][name], rel=0.05)


def test_history_has_a_row_for_each_epoch() -> None:
    cycle = {"name": "one_cycle", "warmup": 0.25}
    augmentation = NO_AUGMENTATION | {"shift": 1}
    recipe = make_recipe(CONVNET, batch_size=20, epochs=3, schedule=cycle, augmentation=augmentation)
    steps: list[None] = []
    rows, _ = run_training(recipe, on_step=lambda: steps.append(None))
    validate(pl.DataFrame(rows), history(), Path("history"))
    assert len(rows) == 3
    assert len(steps) == 3 * (50 // 20)
    assert rows[2]["train_loss"] < rows[0]["train_loss"]
    assert len({row["lr"] for row in rows}) == 3


def test_training_metrics_count_every_example_once() -> None:
    """With a rate that changes nothing, they are those of the whole split."""
    recipe = make_recipe(MLP, batch_size=10, optimizer=SGD | {"lr": 1e-30})
    [row], _ = run_training(recipe)
    model = make_model(recipe.model)
    on_train, on_validation = (
        loop.evaluate_loss(model, examples, LOSS, CPU) for examples in (make_examples(50), make_examples(30, seed=2))
    )
    assert (row["train_loss"], row["train_accuracy"]) == pytest.approx(on_train, rel=1e-5)
    assert (row["validation_loss"], row["validation_accuracy"]) == pytest.approx(on_validation, rel=1e-5)


def test_what_an_epoch_leaves_over_is_not_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []

    def spy(examples: Examples, order_SN: Tensor, device: torch.device) -> Any:
        seen.append(set(order_SN.flatten().tolist()))
        return batches(examples, order_SN, device)

    monkeypatch.setattr(loop, "batches", spy)
    run_training(make_recipe(MLP, batch_size=20, epochs=4))
    assert [len(epoch) for epoch in seen] == [40] * 4
    assert len({frozenset(epoch) for epoch in seen}) == 4


@pytest.mark.parametrize("loss", [{"name": "mse", "class_weight": 0.0}, LOSS.model_dump() | {"label_smoothing": 0.1}])
@pytest.mark.parametrize(
    "optimizer", [SGD | {"momentum": 0.9, "nesterov": True}, {"name": "adam", "lr": 0.003, "weight_decay": 0.0}],
    ids=lambda optimizer: optimizer["name"],
)  # fmt: skip
def test_losses_and_optimizers_learn(loss: dict[str, Any], optimizer: dict[str, Any]) -> None:
    cosine = {"name": "cosine", "warmup": 0.1}
    rows, _ = run_training(make_recipe(MLP, loss=loss, optimizer=optimizer, schedule=cosine, epochs=15))
    assert rows[-1]["validation_accuracy"] > 0.9
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def noisy_examples() -> Examples:
    """Return images of which a third have a wrong label: to fit them all is to overfit."""
    examples = make_examples(90)
    examples.labels[::3] = (examples.labels[::3] + 1) % 10
    return examples


def overfit(
    model: dict[str, Any] = MLP, optimizer: dict[str, Any] = SGD, **settings: Any
) -> tuple[list[Row], TrainState]:
    return run_training(make_recipe(model, epochs=40, optimizer=optimizer, **settings), train=noisy_examples())


def test_l1_makes_the_weights_small() -> None:
    (plain_rows, plain), (rows, small) = overfit(), overfit(regularization=NO_REGULARIZATION | {"l1": 0.002})
    assert l1_norm(small.model) < 0.7 * l1_norm(plain.model)
    assert rows[-1]["train_accuracy"] < plain_rows[-1]["train_accuracy"]


def test_l2_makes_the_weights_small() -> None:
    (_, plain), (_, small) = overfit(), overfit(optimizer=SGD | {"weight_decay": 0.03})
    norms = [
        sum(float(weight.detach().square().sum()) for weight in each.model.parameters()) for each in (plain, small)
    ]
    assert norms[1] < 0.7 * norms[0]


@pytest.mark.parametrize(
    "settings", [{"model": MLP | {"dropout": 0.6}}, {"augmentation": NO_AUGMENTATION | {"shift": 3, "rotation": 15.0}}],
    ids=["dropout", "augmentation"],
)  # fmt: skip
def test_wrong_labels_are_learned_by_heart_less(settings: dict[str, Any]) -> None:
    plain, _ = overfit()
    rows, _ = overfit(**settings)
    assert rows[-1]["train_accuracy"] < plain[-1]["train_accuracy"] - 0.05
    gap, plain_gap = (each[-1]["train_accuracy"] - each[-1]["validation_accuracy"] for each in (rows, plain))
    assert gap < plain_gap


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.4, "cutmix": 1.0}], ids=["plain", "mixed"])
@pytest.mark.parametrize("first_epoch", [2, 3])
def test_training_may_begin_at_any_epoch(first_epoch: int, mixing: dict[str, float]) -> None:
    """What an epoch draws at random does not depend on the epochs before it."""
    augmentation = NO_AUGMENTATION | {"shift": 2, "erase": 0.1} | mixing
    settings = {"augmentation": augmentation, "epochs": 3, "optimizer": SGD | {"lr": 1e-30}}
    recipe = make_recipe(MLP | {"dropout": 0.5}, **settings)
    rows, _ = run_training(recipe)
    later_rows, _ = run_training(recipe, first_epoch=first_epoch)
    assert later_rows == rows[first_epoch - 1 :]
    assert len({row["train_loss"] for row in rows}) == 3


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 2.0, 4.0])], ids=["equal", "weighted"])
@pytest.mark.parametrize("loss", [LOSS, SMOOTH, MSE])
def test_losses_of_single_examples_have_the_loss_as_their_mean(loss: Loss, weights: Tensor | None) -> None:
    logits, labels = torch.randn((6, 4), generator=torch.Generator().manual_seed(1)), torch.arange(6) % 4
    losses = loop.compute_losses(logits, labels, loss, weights)
    assert losses.shape == (6,)
    torch.testing.assert_close(losses.mean(), compute_loss(logits, labels, loss, weights))


def test_mixed_loss_is_that_of_mixed_targets() -> None:
    logits, labels = torch.randn((3, 4), generator=torch.Generator().manual_seed(1)), torch.tensor([3, 0, 1, 2])
    own = torch.tensor([0.75, 0.5, 0.0])
    main_labels, loss = loop.mixed_loss(logits, labels, own, LOSS, None)
    targets = own[:, None] * F.one_hot(labels[1:], 4) + (1 - own[:, None]) * F.one_hot(labels[:-1], 4)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets))
    assert main_labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("amounts", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_mixed_examples_teach_their_classes(amounts: dict[str, float]) -> None:
    recipe = make_recipe(CONVNET, epochs=10, batch_size=10, augmentation=NO_AUGMENTATION | amounts)
    rows, _ = run_training(recipe)
    assert max(row["validation_accuracy"] for row in rows) > 0.9
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.4, "cutmix": 1.0}], ids=["plain", "mixed"])
def test_an_epoch_does_not_depend_on_the_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, mixing: dict[str, float]
) -> None:
    """Processes of the same model, whose slices of the batches are put together here, see what one process sees."""
    augmentation = NO_AUGMENTATION | {"shift": 2, "flip": 0.5, "erase": 0.1} | mixing
    recipe = make_recipe(MLP, augmentation=augmentation, optimizer=SGD | {"lr": 1e-30})
    monkeypatch.setattr(loop, "DistributedDataParallel", lambda model: model)

    def results(rank: int, world_size: int) -> tuple[float, float]:
        monkeypatch.setattr(loop, "rank_and_world_size", lambda: (rank, world_size))
        [row], _ = run_training(recipe)
        return row["train_loss"], row["train_accuracy"]

    alone, parts = results(0, 1), [results(rank, 2) for rank in (0, 1)]
    assert [sum(values) for values in zip(*parts, strict=True)] == pytest.approx(alone, rel=1e-5)
    assert parts[0] != parts[1]


@pytest.mark.parametrize("mapped", [False, True], ids=["in memory", "read ahead"])
def test_colour_images_are_augmented_and_learned(tmp_path: Path, mapped: bool) -> None:
    """Three classes: red, green and blue pictures."""
    labels = torch.arange(60) % 3
    inputs = torch.randint(100, (60, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    inputs[torch.arange(60), labels] += 100
    examples = Examples(inputs, labels)
    if mapped:
        pixels = inputs.numpy()
        write_array(tmp_path / "train.npy", pixels.shape, pixels.dtype, [pixels])
        mapped_inputs = map_array(tmp_path / "train.npy", pixels.shape, pixels.dtype)
        examples = as_tensors(Split(mapped_inputs, labels.numpy()))
    amounts = {"shift": 1, "flip": 0.5, "crop": 0.5, "color": 0.2, "erase": 0.1, "mixup": 0.2, "cutmix": 1.0}
    recipe = make_recipe(CONVNET | {"padding": "same"}, epochs=20, augmentation=NO_AUGMENTATION | amounts)
    model = build_model(recipe.model, make_spec((3, 12, 10), 3))
    state = create_state(recipe, model, recipe.epochs * 3)
    *_, row = loop.train_epochs(state, recipe, examples, examples, 1, machine=make_machine())
    assert row["validation_accuracy"] > 0.95
