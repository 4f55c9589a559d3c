"""Calibrate the confidence of a model, and decide which of its predictions are sure.

Shape suffixes: N examples, K classes.
"""

from math import ceil, sqrt
from typing import Literal

import torch
from torch import Tensor

from stages.core.evaluation.config import Unsure
from stages.core.evaluation.metrics import CHUNK, predict_classes

# The range is wide: logits may be those of a regression to 0 and 1, or of a network that has diverged.
TEMPERATURES = (0.01, 100.0)
HALVINGS = 20  # of the range's logarithm, which give five significant digits


def fit_temperature(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Return the temperature that minimizes the cross-entropy of these logits (Guo et al. 2017, arXiv 1706.04599).

    The labels are smoothed as if one more example were shared among the classes, after Platt 1999: otherwise a model
    without errors on the split would be given infinite confidence.
    """
    observed_N = logits_NK.gather(1, labels_N.unsqueeze(1)).squeeze(1).double()
    observed_N = observed_N.lerp(logits_NK.mean(1, dtype=torch.double), 1 / (len(labels_N) + 1))
    low, high = TEMPERATURES
    # The cross-entropy is convex in the inverse temperature, and its slope is the expected minus the observed logits.
    # Only the sign of the sum matters, so the number of threads that add it up does not.
    for _ in range(HALVINGS):
        middle = sqrt(low * high)
        chunks = (chunk_NK.double() for chunk_NK in logits_NK.split(CHUNK))
        expected_N = torch.cat([((chunk_NK / middle).softmax(1) * chunk_NK).sum(1) for chunk_NK in chunks])
        if expected_N.sum() > observed_N.sum():  # too confident
            low = middle
        else:
            high = middle
    return sqrt(low * high)


def confidence_threshold(
    logits_NK: Tensor, labels_N: Tensor, target: Unsure
) -> tuple[float, Literal["risk", "coverage"]]:
    """Return the confidence 0..1 below which predictions are unsure, and the target that decided it.

    It is the lowest confidence such that, of the predictions at or above it, at most the share `target.risk` is wrong,
    or a lower one if these would be less than the share `target.coverage` of all. This is selective classification as
    in El-Yaniv & Wiener 2010 and Geifman & El-Yaniv 2017, arXiv 1705.08500, without the latter's bound for unseen data.
    """
    confidence_N, prediction_N = predict_classes(logits_NK)
    confidence_N, order_N = confidence_N.sort(descending=True)
    count_N = torch.arange(1, len(labels_N) + 1)
    errors_N = (prediction_N != labels_N)[order_N].cumsum(0)
    last_N = torch.ones_like(count_N, dtype=torch.bool)
    last_N[:-1] = confidence_N[:-1] > confidence_N[1:]  # Predictions of equal confidence are all sure or all unsure.
    accurate_N = last_N & (errors_N <= target.risk * count_N)
    covered = ceil(target.coverage * len(labels_N))
    accurate = min(confidence_N[accurate_N].tolist(), default=1.0)
    covering = float(confidence_N[covered - 1]) if covered else 1.0
    return (accurate, "risk") if accurate <= covering else (covering, "coverage")


def count_unsure(logits_NK: Tensor, labels_N: Tensor, unsure_below: float) -> tuple[int, int]:
    """Count the unsure predictions, and the wrong ones among the others."""
    confidence_N, prediction_N = predict_classes(logits_NK)
    unsure_N = confidence_N < unsure_below
    return int(unsure_N.sum()), int((~unsure_N & (prediction_N != labels_N)).sum())
