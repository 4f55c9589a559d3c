"""The confidence below which a prediction is unsure, against cases worked out by hand."""

import pytest
import torch
from torch import Tensor

from stages.core.inference import confidence_threshold, count_unsure


def logits(confidences: list[float]) -> Tensor:
    """Of two classes; the prediction is class 0 with these confidences."""
    sure = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([sure, 1 - sure], dim=1).log()


CONFIDENCES = [0.95, 0.9, 0.8, 0.7, 0.6]


@pytest.mark.parametrize(
    ("wrong", "accuracy", "expected"),
    [
        ([], 1.0, 0.6),  # all right: all sure
        ([4], 1.0, 0.7),
        ([4], 0.8, 0.6),  # four of five are enough
        ([2], 1.0, 0.9),
        ([2], 0.75, 0.6),  # one error among five, though among the first three are too many
        ([0], 1.0, 1.0),  # the surest is wrong: none is sure
        ([0], 0.5, 0.6),
        ([0, 1, 2, 3, 4], 0.0, 0.6),
    ],
)
def test_by_hand(wrong: list[int], accuracy: float, expected: float) -> None:
    labels = torch.tensor([int(index in wrong) for index in range(5)])
    order = torch.tensor([3, 0, 4, 1, 2])
    threshold = confidence_threshold(logits(CONFIDENCES)[order], labels[order], accuracy)
    assert threshold == pytest.approx(expected)


def test_equal_confidences_are_sure_together_or_not_at_all() -> None:
    tied, labels = logits([0.9, 0.8, 0.8, 0.8]), torch.tensor([0, 0, 0, 1])
    assert confidence_threshold(tied, labels, 1.0) == pytest.approx(0.9)
    assert confidence_threshold(tied, labels, 0.75) == pytest.approx(0.8)


def test_counts() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0])
    assert count_unsure(logits(CONFIDENCES), labels, 0.75) == (2, 1)
    assert count_unsure(logits(CONFIDENCES), labels, 0.5) == (0, 2)
    assert count_unsure(logits(CONFIDENCES), labels, 1.0) == (5, 0)
