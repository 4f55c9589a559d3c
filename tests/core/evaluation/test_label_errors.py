"""Test confident learning against labels that were flipped on purpose, and against the article's formulas in loops."""

import pytest
import torch
from torch import Tensor

from stages.core.evaluation.label_errors import confidence_thresholds, find_label_errors, self_confidence


def flipped(count: int, num_classes: int) -> tuple[Tensor, Tensor, list[int]]:
    """Return logits of a good model, labels of which every eleventh is wrong, and the indices of those."""
    truth = torch.arange(count) % num_classes
    logits = torch.randn((count, num_classes), generator=torch.Generator().manual_seed(1))
    logits += 12 * torch.nn.functional.one_hot(truth, num_classes)
    wrong = torch.arange(0, count, 11)
    labels = truth.clone()
    labels[wrong] = (truth[wrong] + 1) % num_classes
    return logits, labels, wrong.tolist()


def find_in_loops(logits: Tensor, labels: Tensor, sure: float) -> list[int]:
    """Return the examples off the diagonal of the confident joint that the model takes for another class."""
    probabilities, given = logits.double().softmax(1).tolist(), labels.tolist()
    thresholds = {}
    for label in set(given):
        own = [row[label] for row, other in zip(probabilities, given, strict=True) if other == label]
        thresholds[label] = min(sum(own) / len(own), sure)
    found = []
    for index, (row, label) in enumerate(zip(probabilities, given, strict=True)):
        reached = [other for other in thresholds if row[other] >= thresholds[other]]
        best = max(reached, key=lambda other: row[other], default=label)
        if best != label and row[best] > row[label]:
            found.append(index)
    return found


@pytest.mark.parametrize("num_classes", [2, 3, 50])
def test_exactly_the_flipped_labels_are_found(num_classes: int) -> None:
    logits, labels, wrong = flipped(2500, num_classes)
    found = find_label_errors(logits, labels, 1.0)
    assert sorted(found.rows.tolist()) == wrong
    assert torch.equal(found.suggested, found.rows % num_classes)
    probabilities = logits.double().softmax(1)
    assert found.label_confidence.tolist() == probabilities[found.rows, labels[found.rows]].tolist()
    assert found.suggested_confidence.tolist() == probabilities[found.rows, found.suggested].tolist()
    assert found.label_confidence.tolist() == sorted(found.label_confidence.tolist())


@pytest.mark.parametrize("sure", [0.4, 1.0])
@pytest.mark.parametrize("scale", [0.1, 1, 3])
def test_poor_models_give_what_the_formulas_say(scale: float, sure: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = scale * torch.randn((1500, 4), generator=generator)
    labels = torch.randint(4, (1500,), generator=generator)
    found = find_label_errors(logits, labels, sure).rows.tolist()
    assert sorted(found) == find_in_loops(logits, labels, sure)
    assert found


def test_a_sure_prediction_of_another_class_is_enough() -> None:
    """No prediction of class 1 is as probable as that of the only example which has its label."""
    logits = torch.tensor([[4.0, 0], [4, 0], [0, 4], [0, 5]])
    labels = torch.tensor([0, 0, 0, 1])
    assert find_label_errors(logits, labels, 1.0).rows.tolist() == []
    found = find_label_errors(logits, labels, 0.9)
    assert (found.rows.tolist(), found.suggested.tolist()) == ([2], [1])


def test_a_class_without_examples_is_suggested_only_if_sure() -> None:
    logits = torch.tensor([[0.0, 1, 4], [2, 1, 4], [0, 3, 4]])
    labels = torch.tensor([0, 0, 1])
    assert confidence_thresholds(self_confidence(logits, labels), labels, logits.shape[1])[2] == torch.inf
    assert 2 not in find_label_errors(logits, labels, 1.0).suggested
    assert find_label_errors(logits, labels, 0.9).suggested.tolist() == [2]


def test_a_model_that_gives_all_classes_the_same_suspects_nothing() -> None:
    assert find_label_errors(torch.zeros((30, 3)), torch.arange(30) % 3, 0.3).rows.tolist() == []


def test_extreme_logits_give_no_nan() -> None:
    logits = torch.tensor([[3e38, -3e38], [-3e38, 3e38], [3e38, -3e38]])
    found = find_label_errors(logits, torch.tensor([0, 1, 1]), 1.0)
    assert (found.rows.tolist(), found.suggested.tolist()) == ([2], [0])
    assert (found.label_confidence.tolist(), found.suggested_confidence.tolist()) == ([0.0], [1.0])


def test_ten_thousand_classes() -> None:
    logits, labels, wrong = flipped(2000, 10_000)
    found = find_label_errors(logits, labels, 1.0)
    assert set(found.rows.tolist()) <= set(wrong)  # Most true classes have no example from which to learn a threshold.
