"""Optimizers take their settings, rates follow their schedule, and losses are their formulas."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from stages.core.training.config import Adam, AdamW, Constant, Cosine, CrossEntropy, Mse, OneCycle, Sgd
from stages.core.training.optimization import compute_loss, l1_norm, make_optimizer, make_schedule

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
    torch.testing.assert_close(
        compute_loss(logits, labels, CrossEntropy(name="cross_entropy", label_smoothing=0.1)), expected
    )


def test_mse_is_against_one_hot() -> None:
    logits = torch.tensor([[0.5, 0.0], [1.0, 2.0]])
    loss = compute_loss(logits, torch.tensor([0, 1]), Mse(name="mse"))
    assert loss.item() == pytest.approx(((0.5 - 1) ** 2 + 0 + 1 + (2 - 1) ** 2) / 4)


def test_l1_is_of_weights_without_biases() -> None:
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, -2.0)
    nn.init.constant_(model.bias, 100.0)
    assert l1_norm(model).item() == 12
