"""Test the metrics against values worked out by hand, and against torchmetrics."""

from math import log

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional import classification

from stages.core.evaluation.config import CALIBRATION_BINS as BINS
from stages.core.evaluation.metrics import CHUNK, TOP, calibration_error, measure, predict_classes, wilson_interval

# The predicted class has probability 1/2, the two others 1/4 each.
LABELS = torch.tensor([0, 0, 0, 0, 1, 2])
PREDICTED = torch.tensor([0, 0, 1, 1, 1, 2])
LOGITS = torch.full((6, 3), 0.25).scatter(1, PREDICTED.unsqueeze(1), 0.5).log()


def test_metrics_by_hand() -> None:
    overall, by_class = measure(LOGITS, LABELS)
    # Of class 0, 2 of 4 are found; class 1 is given to 3, 2 of them wrongly; all of class 2 is right.
    assert by_class["precision"] == pytest.approx([1, 1 / 3, 1])
    assert by_class["recall"] == pytest.approx([1 / 2, 1, 1])
    assert by_class["f1"] == pytest.approx([2 / 3, 1 / 2, 1])
    expected = {
        "accuracy": 4 / 6,
        "precision": 7 / 9,
        "recall": 5 / 6,
        "f1": 13 / 18,
        "loss": (4 * log(2) + 2 * log(4)) / 6,
        "calibration_error": 4 / 6 - 1 / 2,  # Every confidence is 1/2.
    }
    assert overall == pytest.approx(expected)


def test_metrics_of_a_class_without_any_example() -> None:
    overall, by_class = measure(LOGITS[:5], LABELS[:5])
    assert [by_class[name][2] for name in ("precision", "recall", "f1")] == [0, 0, 0]
    assert by_class["recall"] == pytest.approx([1 / 2, 1, 0])
    assert overall["accuracy"] == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        # These are from Newcombe 1998, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_as_published(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_another_level() -> None:
    # With no success the upper end is z^2 / (n + z^2).
    z = 2.5758293
    assert wilson_interval(0, 50, level=0.99)[1] == pytest.approx(z**2 / (50 + z**2))


def test_wilson_interval_stays_within_0_and_1() -> None:
    for total in range(1, 300):
        for correct in (0, total):
            low, high = wilson_interval(correct, total)
            assert 0 <= low < high <= 1
            assert low <= correct / total <= high


def draw(count: int, num_classes: int, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return logits, and labels which are often those of the largest."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn((count, num_classes), generator=generator)
    labels = torch.randint(num_classes, (count,), generator=generator)
    right = torch.rand(count, generator=generator) < 0.7
    return logits, torch.where(right, logits.argmax(1), labels)


def one_hot(predictions: list[int], num_classes: int, scale: float) -> Tensor:
    return scale * F.one_hot(torch.tensor(predictions), num_classes).float()


CASES = {
    **{
        f"{count} of {num_classes} classes, logits x{scale:g}": draw(count, num_classes, scale, seed)
        for seed, (count, num_classes, scale) in enumerate(
            [
                (1, 2, 1.0),
                (7, 3, 1.0),
                (100, 10, 0.1),
                (100, 10, 3.0),
                (1000, 2, 2.0),
                (1000, 10, 1.0),
                (3000, 256, 5.0),
                (5000, 10, 6.0),
            ]
        )
    },
    "all right": (one_hot([0, 1, 2, 2], 3, 4.0), torch.tensor([0, 1, 2, 2])),
    "all wrong": (one_hot([1, 2, 0, 0], 3, 4.0), torch.tensor([0, 1, 2, 2])),
    "one prediction for all": (one_hot([1] * 5, 3, 2.0), torch.tensor([0, 1, 2, 1, 0])),
    "one label for all": (one_hot([0, 1, 2, 1, 0], 3, 2.0), torch.tensor([1] * 5)),
    "a class that is only predicted": (one_hot([2, 0, 1], 4, 1.0), torch.tensor([0, 0, 1])),
    "ties": (torch.zeros(6, 4), torch.tensor([0, 1, 2, 3, 0, 0])),
    "huge logits": (one_hot([0, 1, 1], 2, 1e4), torch.tensor([0, 1, 0])),
}


@pytest.mark.parametrize("case", CASES)
def test_metrics_are_those_of_torchmetrics(case: str) -> None:
    logits, labels = CASES[case]
    num_classes = logits.shape[1]
    overall, by_class = measure(logits, labels)
    assert [*by_class] == ["precision", "recall", "f1"]
    for name, function in {
        "precision": classification.multiclass_precision,
        "recall": classification.multiclass_recall,
        "f1": classification.multiclass_f1_score,
    }.items():
        expected = function(logits, labels, num_classes=num_classes, average="none", zero_division=0)
        assert by_class[name] == pytest.approx(expected.tolist(), abs=1e-6), name
        # The mean of torchmetrics would leave out a class that is neither among the labels nor the predictions.
        assert overall[name] == pytest.approx(expected.double().mean().item(), abs=1e-6), name
    accuracy = classification.multiclass_accuracy(logits, labels, num_classes=num_classes, average="micro")
    assert overall["accuracy"] == pytest.approx(accuracy.item(), abs=1e-6)
    # Without a class that has no examples, this is scikit-learn's balanced accuracy as well.
    present = labels.bincount(minlength=num_classes) > 0
    confusion = classification.multiclass_confusion_matrix(logits, labels, num_classes)[present]
    balanced = (confusion[:, present].diagonal() / confusion.sum(1)).double().mean().item()
    assert overall["recall"] * num_classes / int(present.sum()) == pytest.approx(balanced, abs=1e-6)
    if num_classes > TOP:
        top = classification.multiclass_accuracy(logits, labels, num_classes, average="micro", top_k=TOP)
        assert overall["top5_accuracy"] == pytest.approx(top.item(), abs=1e-6)
    else:
        assert "top5_accuracy" not in overall
    assert overall["loss"] == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-5, abs=1e-6)
    assert overall["calibration_error"] == calibration_error(logits, labels)


@pytest.mark.parametrize("case", [name for name in CASES if name != "huge logits"])
def test_the_calibration_error_is_that_of_torchmetrics(case: str) -> None:
    logits, labels = CASES[case]
    # Rounded to float32, a confidence near the border of two bins might be in either.
    probabilities = logits.double().softmax(1)
    confidences = probabilities.amax(1) * BINS
    on_border = (confidences - confidences.round()).abs() < 1e-12
    assert not on_border.any(), "a bin of torchmetrics holds its lower end, ours its upper"
    expected = classification.multiclass_calibration_error(probabilities, labels, logits.shape[1], n_bins=BINS)
    assert calibration_error(logits, labels) == pytest.approx(expected.item(), abs=1e-6)


def test_top5_accuracy_by_hand() -> None:
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1]] * 4)
    assert measure(logits, torch.tensor([0, 4, 5, 5]))[0]["top5_accuracy"] == 2 / 4


def test_thousands_of_classes_are_measured() -> None:
    """Labels beyond 255 are as good as others."""
    labels = torch.arange(0, 10_000, 7)
    predicted = torch.where(labels % 2 == 0, labels, 0)
    logits = torch.zeros(len(labels), 10_000).scatter(1, predicted.unsqueeze(1), 20.0)
    overall, by_class = measure(logits, labels)
    assert overall["accuracy"] == 715 / 1429
    assert [by_class["recall"][label] for label in (9996, 9989, 9990)] == [1, 0, 0]
    assert overall["recall"] == pytest.approx(715 / 10_000)


def test_predictions_of_many_examples_are_those_of_all_at_once() -> None:
    logits, _ = draw(2 * CHUNK + 3, 10, 3.0, seed=1)
    confidences, classes = predict_classes(logits)
    expected = logits.double().softmax(1).max(1)
    assert torch.equal(confidences, expected.values)
    assert torch.equal(classes, expected.indices)


def two_classes(confidences: list[float]) -> Tensor:
    """Return logits of two classes whose prediction is class 0 with these confidences."""
    sure = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([sure, 1 - sure], dim=1).log()


def test_a_bin_holds_its_upper_end_and_not_its_lower() -> None:
    """As in Guo et al.: confidence 0.6 is in the ninth of 15 bins, with 0.55, not with 0.65."""
    logits, labels = two_classes([0.5500001, 0.6 - 1e-12, 0.65]), torch.tensor([0, 1, 0])
    assert calibration_error(logits, labels) == pytest.approx((abs(0.55 + 0.6 - 1) + 0.35) / 3, abs=1e-6)


def test_full_confidence_is_in_the_last_bin() -> None:
    logits, labels = one_hot([0, 0, 0, 0], 2, 1e4), torch.tensor([0, 0, 0, 1])
    assert calibration_error(logits, labels) == pytest.approx(1 / 4)
    almost = two_classes([0.96])
    mixed = torch.cat([logits.double()[:1], almost])
    assert calibration_error(mixed, torch.tensor([0, 1])) == pytest.approx(abs(1 + 0.96 - 1) / 2)


def test_the_error_of_a_calibrated_model_is_small() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn((20_000, 5), generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert calibration_error(logits, labels) < 0.01
    assert calibration_error(3 * logits, labels) > 0.1


def test_the_dtype_of_the_logits_changes_little() -> None:
    logits, labels = draw(1000, 10, 3.0, seed=1)
    for name, value in measure(logits.double(), labels)[0].items():
        assert measure(logits, labels)[0][name] == pytest.approx(value, abs=1e-6), name
