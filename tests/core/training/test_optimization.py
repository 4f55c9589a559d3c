"""Optimizers take their settings, rates follow their schedule, and losses are their formulas."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn

from stages.core.training.config import Adam, AdamW, Constant, Cosine, CrossEntropy, Mse, OneCycle, Sgd
from stages.core.training.optimization import (
    compute_loss,
    l1_norm,
    make_class_weights,
    make_optimizer,
    make_schedule,
)
from tests.core.training.small_runs import CPU, MLP, SGD, make_examples, make_model, make_recipe, run_training


def cross_entropy(class_weight: float = 0.0, label_smoothing: float = 0.0) -> CrossEntropy:
    return CrossEntropy(name="cross_entropy", label_smoothing=label_smoothing, class_weight=class_weight)


def mse(class_weight: float = 0.0) -> Mse:
    return Mse(name="mse", class_weight=class_weight)


OPTIMIZERS: TypeAdapter[Any] = TypeAdapter(Sgd | Adam | AdamW)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {"name": "sgd", "lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
        (torch.optim.Adam, {"name": "adam", "lr": 0.2, "weight_decay": 0.03}),
        (torch.optim.AdamW, {"name": "adamw", "lr": 0.2, "weight_decay": 0.03}),
    ],
)
def test_optimizers_take_their_settings(kind: type, settings: dict[str, Any]) -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), OPTIMIZERS.validate_python(settings))
    assert type(optimizer) is kind
    assert {name: value for name, value in settings.items() if name != "name"}.items() <= (
        optimizer.param_groups[0].items()
    )


def decayed(settings: dict[str, Any]) -> float:
    """Return what one step without a gradient makes of a weight of 2."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    model.weight.grad = torch.zeros_like(model.weight)
    make_optimizer(model, OPTIMIZERS.validate_python(settings)).step()
    return model.weight.item()


def test_weight_decay_is_in_the_gradient_or_beside_it() -> None:
    sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.5}
    assert decayed(sgd) == pytest.approx(2 - 0.1 * 0.5 * 2)
    assert decayed({"name": "adamw", "lr": 0.1, "weight_decay": 0.5}) == pytest.approx(2 - 0.1 * 0.5 * 2)
    # Adam's first step is as large as the rate, however large the gradient is.
    assert decayed({"name": "adam", "lr": 0.1, "weight_decay": 0.5}) == pytest.approx(2 - 0.1)


def rates(schedule: Constant | OneCycle | Cosine, steps: int) -> list[float]:
    """Return the learning rate of each step."""
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    scheduler = make_schedule(optimizer, schedule, steps)
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", [0.25, 0.5])
def test_one_cycle_peaks_at_the_rate_and_ends_near_zero(warmup: float) -> None:
    found = rates(OneCycle(name="one_cycle", warmup=warmup), steps=100)
    peak = found.index(max(found))
    assert found[peak] == pytest.approx(0.1)
    assert peak == pytest.approx(100 * warmup, abs=1)
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[0] < 0.1 / 10
    assert 0 <= found[-1] < 0.1 / 1000


def test_one_cycle_keeps_the_momentum_of_sgd_and_turns_that_of_adam() -> None:
    cycle = OneCycle(name="one_cycle", warmup=0.25)
    sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.3, "nesterov": False, "weight_decay": 0.0}
    adamw = {"name": "adamw", "lr": 0.1, "weight_decay": 0.0}
    for settings, name, expected in ((sgd, "momentum", [0.3, 0.3]), (adamw, "betas", [0.95, 0.85])):
        optimizer = make_optimizer(nn.Linear(2, 2), OPTIMIZERS.validate_python(settings))
        schedule, found = make_schedule(optimizer, cycle, steps=8), []
        for _ in range(2):
            found.append(optimizer.param_groups[0][name])
            optimizer.step()
            schedule.step()
        assert [value if name == "momentum" else value[0] for value in found] == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_cosine_rises_in_a_line_and_falls_to_near_zero(warmup: float) -> None:
    found = rates(Cosine(name="cosine", warmup=warmup), steps=100)
    up = round(100 * warmup)
    assert max(found) == pytest.approx(0.1)
    assert found[up] == pytest.approx(0.1)
    steps_up = [later - earlier for earlier, later in pairwise(found[: up + 1])]
    assert steps_up == pytest.approx([0.1 / (up + 1)] * up)
    assert found[up:] == sorted(found[up:], reverse=True)
    assert found[(100 + up) // 2] == pytest.approx(0.05)  # half way down
    assert 0 <= found[-1] < 0.1 / 1000


@pytest.mark.parametrize("steps", range(1, 9))
def test_schedules_of_few_steps(steps: int) -> None:
    for schedule in (OneCycle(name="one_cycle", warmup=0.25), Cosine(name="cosine", warmup=0.9)):
        found = rates(schedule, steps)
        assert 0 < max(found) <= 0.1 + 1e-9
        assert min(found) >= 0


def test_constant_rate_stays() -> None:
    assert rates(Constant(name="constant"), steps=20) == [0.1] * 20


def test_label_smoothing_is_a_mix_with_the_uniform_distribution() -> None:
    """Szegedy et al. 2015, arXiv 1512.00567, section 7: (1 - e) -log p(label) + e mean(-log p)."""
    logits = torch.randn((6, 4), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    log_p = logits.log_softmax(1)
    expected = -(0.9 * log_p.gather(1, labels[:, None])[:, 0] + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(compute_loss(logits, labels, cross_entropy(label_smoothing=0.1)), expected)


def test_mse_is_against_one_hot() -> None:
    logits = torch.tensor([[0.5, 0.0], [1.0, 2.0]])
    loss = compute_loss(logits, torch.tensor([0, 1]), mse())
    assert loss.item() == pytest.approx(((0.5 - 1) ** 2 + 0 + 1 + (2 - 1) ** 2) / 4)


IMBALANCED = torch.tensor([0] * 16 + [1] * 4 + [2] * 1)
LOGITS = torch.randn((21, 3), generator=torch.Generator().manual_seed(1))


def weights_of(class_weight: float, labels: Tensor = IMBALANCED, num_classes: int = 3) -> Tensor:
    weights = make_class_weights(cross_entropy(class_weight), labels, num_classes)
    assert weights is not None
    return weights


def test_class_weights_by_hand() -> None:
    assert weights_of(1.0).tolist() == pytest.approx([21 / (3 * 16), 21 / (3 * 4), 21 / 3])
    # The square roots of these are as 1 to 2 to 4, and their sum over the examples is 16 + 8 + 4 = 28.
    assert weights_of(0.5).tolist() == pytest.approx([21 / 28, 2 * 21 / 28, 4 * 21 / 28])


@pytest.mark.parametrize("class_weight", [0.001, 0.3, 1.0])
def test_the_mean_class_weight_of_the_training_examples_is_one(class_weight: float) -> None:
    labels = torch.randint(10_000, (50_000,), generator=torch.Generator().manual_seed(1)) ** 2 // 10_000
    weights = weights_of(class_weight, labels, 10_000)
    assert weights[labels].double().mean().item() == pytest.approx(1, abs=1e-6)
    assert weights.shape == (10_000,)


def test_all_classes_of_weighted_examples_count_the_same_at_exponent_one() -> None:
    totals = torch.zeros(3).index_add(0, IMBALANCED, weights_of(1.0)[IMBALANCED])
    assert totals.tolist() == pytest.approx([7, 7, 7])


def test_equal_classes_have_weight_one() -> None:
    assert weights_of(0.7, torch.tensor([0, 1, 2, 2, 1, 0])).tolist() == pytest.approx([1, 1, 1])


def test_a_class_without_training_examples_has_the_weight_of_one_with_a_single_example() -> None:
    weights = weights_of(1.0, num_classes=4)
    assert weights[3] == weights[2]
    assert weights[IMBALANCED].mean().item() == pytest.approx(1)


def test_a_class_weight_of_zero_is_no_weight() -> None:
    for loss in (cross_entropy(0.0), mse(0.0)):
        assert make_class_weights(loss, IMBALANCED, 3) is None


def test_weighted_cross_entropy_is_that_of_pytorch_by_example() -> None:
    weights = weights_of(0.8)
    expected = F.cross_entropy(LOGITS, IMBALANCED, weight=weights, reduction="sum") / len(IMBALANCED)
    torch.testing.assert_close(compute_loss(LOGITS, IMBALANCED, cross_entropy(0.8), weights), expected)


LOSSES: list[CrossEntropy | Mse] = [cross_entropy(1.0), cross_entropy(1.0, label_smoothing=0.1), mse(1.0)]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_an_example_of_weight_three_counts_as_three(loss: CrossEntropy | Mse) -> None:
    times = torch.tensor([1, 2, 3])
    often = times[IMBALANCED]
    repeated = compute_loss(LOGITS.repeat_interleave(often, 0), IMBALANCED.repeat_interleave(often), loss)
    weighted = compute_loss(LOGITS, IMBALANCED, loss, times.float())
    torch.testing.assert_close(weighted * len(often), repeated * often.sum())


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_weighted_loss_is_the_mean_of_those_of_equal_slices(loss: CrossEntropy | Mse) -> None:
    weights = weights_of(1.0)
    slices = zip(LOGITS.split(7), IMBALANCED.split(7), strict=True)
    of_slices = torch.stack([compute_loss(*each, loss, weights) for each in slices])
    torch.testing.assert_close(of_slices.mean(), compute_loss(LOGITS, IMBALANCED, loss, weights))


def test_weights_of_one_change_no_loss() -> None:
    for loss in LOSSES:
        plain, weighted = (compute_loss(LOGITS, IMBALANCED, loss, weights) for weights in (None, torch.ones(3)))
        torch.testing.assert_close(weighted, plain)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_run_reports_the_weighted_loss_of_both_splits(loss: CrossEntropy | Mse) -> None:
    """With a rate that changes nothing, both are those of the first weights."""
    train, validation = make_examples(60), make_examples(30, seed=2)
    train.labels[train.labels < 5] = 0
    validation.labels[validation.labels < 5] = 0
    recipe = make_recipe(MLP, batch_size=10, optimizer=SGD | {"lr": 1e-30}, loss=loss.model_dump())
    [row], state = run_training(recipe, train=train, validation=validation)
    weights = make_class_weights(loss, train.labels, 10)
    model = make_model(recipe.model).to(CPU)
    assert torch.equal(next(model.parameters()), next(state.model.parameters()))
    for name, examples in (("train", train), ("validation", validation)):
        with torch.inference_mode():
            expected = compute_loss(model(examples.inputs), examples.labels, loss, weights).item()
        assert row[f"{name}_loss"] == pytest.approx(expected, rel=1e-5)


def test_class_weights_raise_the_recall_of_rare_classes() -> None:
    """The images are noise and one label in five is 1, so only the weights decide how often class 1 is predicted."""
    examples = make_examples(100)
    noise = torch.randint(256, examples.inputs.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    train = examples._replace(inputs=noise, labels=(torch.arange(100) % 5 == 0).long())
    settings: dict[str, Any] = {"batch_size": 100, "epochs": 15, "optimizer": SGD | {"lr": 0.01}}
    predicted = []
    for class_weight in (0.0, 1.0):
        loss = cross_entropy(class_weight).model_dump()
        _, state = run_training(make_recipe(MLP, loss=loss, **settings), train=train, validation=train)
        with torch.inference_mode():
            predicted.append(int((state.model.eval()(noise).argmax(1) == 1).sum()))
    assert predicted[1] > predicted[0] + 10


def test_l1_is_of_weights_without_biases() -> None:
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, -2.0)
    nn.init.constant_(model.bias, 100.0)
    assert l1_norm(model).item() == 12
