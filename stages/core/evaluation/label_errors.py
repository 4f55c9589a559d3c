"""Find the examples whose label is likely wrong, by confident learning.

The method is that of Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal
of Artificial Intelligence Research 70, 2021, doi 10.1613/jair.1.12125. Its predictions must come from a model that was
not trained on the examples, because a network learns even wrong labels by heart.

Shape suffixes: N examples, K classes, M examples found.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stages.core.evaluation.metrics import CHUNK


class LabelErrors(NamedTuple):
    """Hold the examples whose label is likely wrong, those with the least probable label first."""

    rows: Tensor  # int64 [M], the indices of the examples
    suggested: Tensor  # int64 [M], the class to which the model assigns each
    label_confidence: Tensor  # float64 [M], 0..1: the probability of the given label
    suggested_confidence: Tensor  # float64 [M], 0..1: the probability of the suggested class


def find_label_errors(logits_NK: Tensor, labels_N: Tensor, sure: float) -> LabelErrors:
    """Return the examples off the diagonal of the article's confident joint, and those that are surely another class.

    An example counts as one of class k if its probability of k reaches the class's threshold or `sure`, 0..1; if that
    holds for several classes, as one of the most probable of these. Its label is likely wrong if that is another class,
    unless the model finds the label at least as probable. The article has no limit such as `sure`. Without it, half of
    the wrong labels escape where a good model gives all examples of a class nearly the same probability, because half
    of these are below their mean.
    """
    own_N = self_confidence(logits_NK, labels_N)
    threshold_K = confidence_thresholds(own_N, labels_N, logits_NK.shape[1]).clamp(max=sure)
    suggested, confidence = [], []
    for probability_NK, _ in in_chunks(logits_NK, labels_N):
        reached = probability_NK.where(probability_NK >= threshold_K, 0).max(1)
        suggested.append(reached.indices)
        confidence.append(reached.values)
    suggested_N, confidence_N = torch.cat(suggested), torch.cat(confidence)
    rows_M = (confidence_N > own_N).nonzero().squeeze(1)  # An example that reaches no threshold has confidence 0.
    rows_M = rows_M[own_N[rows_M].argsort(stable=True)]
    return LabelErrors(rows_M, suggested_N[rows_M], own_N[rows_M], confidence_N[rows_M])


def confidence_thresholds(own_N: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Return the mean probability of their own label among the examples of each class, float64 [K] (equation 2).

    `own_N` is what `self_confidence` returns. The mean is infinite for a class without examples.
    """
    count_K = labels_N.bincount(minlength=num_classes)
    sum_K = labels_N.bincount(own_N, minlength=num_classes)
    return torch.where(count_K > 0, sum_K / count_K, torch.inf)


def self_confidence(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return the probability 0..1 that the model assigns to the label of each example, float64 [N]."""
    chunks = in_chunks(logits_NK, labels_N)
    return torch.cat([probability_NK.gather(1, label_N.unsqueeze(1)).squeeze(1) for probability_NK, label_N in chunks])


def in_chunks(logits_NK: Tensor, labels_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield probabilities, float64, and labels of a few examples at a time; all may not fit into the memory."""
    for logits, labels in zip(logits_NK.split(CHUNK), labels_N.split(CHUNK), strict=True):
        yield logits.double().softmax(1), labels
