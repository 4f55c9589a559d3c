"""Test calibration, and the confidence below which a prediction is unsure against cases worked out by hand."""

import pytest
import torch
from torch import Tensor

from stages.core.evaluation.calibration import TEMPERATURES, confidence_threshold, count_unsure, fit_temperature
from stages.core.evaluation.config import Unsure
from stages.core.evaluation.metrics import calibration_error


def calibrated(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return logits of five classes, and labels that are drawn from the probabilities they stand for."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((count, 5), generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    logits, labels = calibrated(20_000)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("temperature", [0.3, 3.0], ids=["underconfident", "overconfident"])
def test_calibration_lowers_the_error_on_other_images_and_changes_no_label(temperature: float) -> None:
    logits, labels = calibrated(5000)
    fitted = fit_temperature(logits * temperature, labels)
    logits, labels = calibrated(5000, seed=2)
    logits = logits * temperature
    assert calibration_error(logits, labels) > 0.05
    assert calibration_error(logits / fitted, labels) < 0.02
    assert torch.equal((logits / fitted).argmax(1), logits.argmax(1))


def test_a_model_without_errors_is_not_infinitely_confident() -> None:
    labels = torch.arange(50) % 5
    logits = torch.nn.functional.one_hot(labels, 5).float()
    confidence = (logits / fit_temperature(logits, labels)).softmax(1).amax(1)
    assert torch.all((confidence > 0.97) & (confidence < 0.99))  # as if one image of 51 were shared by all classes


def test_a_model_worse_than_chance_is_given_no_confidence() -> None:
    labels = torch.arange(50) % 5
    wrong = torch.nn.functional.one_hot((labels + 1) % 5, 5).float()
    assert fit_temperature(wrong, labels) == pytest.approx(TEMPERATURES[1], rel=1e-4)


def test_the_number_of_threads_does_not_change_the_temperature() -> None:
    logits, labels = calibrated(20_000)
    threads, found = torch.get_num_threads(), set()
    for count in (1, 3):
        torch.set_num_threads(count)
        found.add(fit_temperature(logits, labels))
    torch.set_num_threads(threads)
    assert len(found) == 1


def two_classes(confidences: list[float]) -> Tensor:
    """Return logits of two classes whose prediction is class 0 with these confidences."""
    sure = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([sure, 1 - sure], dim=1).log()


CONFIDENCES = [0.95, 0.9, 0.8, 0.7, 0.6]


@pytest.mark.parametrize(
    ("wrong", "risk", "coverage", "expected", "decided"),
    [
        ([], 0.0, 0.0, 0.6, "risk"),  # All are right, so all are sure.
        ([4], 0.0, 0.0, 0.7, "risk"),
        ([4], 0.2, 0.0, 0.6, "risk"),  # One error in five is allowed.
        ([2], 0.0, 0.0, 0.9, "risk"),
        ([2], 0.25, 0.0, 0.6, "risk"),  # One error in five is allowed, though one in the first three is not.
        ([0], 0.0, 0.0, 1.0, "risk"),  # The surest is wrong, so none is sure.
        ([2], 0.0, 0.4, 0.9, "risk"),  # Both targets are met.
        ([2], 0.0, 0.8, 0.7, "coverage"),
        ([2], 0.0, 0.7, 0.7, "coverage"),  # At least 70% of five are four.
        ([0], 0.0, 0.2, 0.95, "coverage"),
        ([0, 1, 2, 3, 4], 0.0, 1.0, 0.6, "coverage"),
        ([0, 1, 2, 3, 4], 1.0, 0.0, 0.6, "risk"),
    ],
)
def test_threshold_by_hand(wrong: list[int], risk: float, coverage: float, expected: float, decided: str) -> None:
    labels = torch.tensor([int(index in wrong) for index in range(5)])
    order = torch.tensor([3, 0, 4, 1, 2])
    target = Unsure(risk=risk, coverage=coverage)
    threshold, target_met = confidence_threshold(two_classes(CONFIDENCES)[order], labels[order], target)
    assert threshold == pytest.approx(expected)
    assert target_met == decided


def test_equal_confidences_are_sure_together_or_not_at_all() -> None:
    tied, labels = two_classes([0.9, 0.8, 0.8, 0.8]), torch.tensor([0, 0, 0, 1])
    assert confidence_threshold(tied, labels, Unsure(risk=0.0, coverage=0.0))[0] == pytest.approx(0.9)
    assert confidence_threshold(tied, labels, Unsure(risk=0.25, coverage=0.0))[0] == pytest.approx(0.8)
    assert confidence_threshold(tied, labels, Unsure(risk=0.0, coverage=0.5))[0] == pytest.approx(0.8)


def test_counts() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0])
    assert count_unsure(two_classes(CONFIDENCES), labels, 0.75) == (2, 1)
    assert count_unsure(two_classes(CONFIDENCES), labels, 0.5) == (0, 2)
    assert count_unsure(two_classes(CONFIDENCES), labels, 1.0) == (5, 0)
