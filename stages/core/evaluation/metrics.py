"""Measure predictions. To add a metric, add it to the dictionary that `measure` returns.

The formulas are written out because importing torchmetrics takes longer than everything else that stage `evaluate`
does. The tests compare the results with torchmetrics.

Shape suffixes: N examples, K classes, B bins.
"""

from math import sqrt
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.evaluation.config import CALIBRATION_BINS as BINS

TOP = 5  # guesses, as in Russakovsky et al. 2015, arXiv 1409.0575
CHUNK = 1000  # examples whose probabilities are computed at once: with thousands of classes, all of them take gigabytes


def measure(logits_NK: Tensor, labels_N: Tensor) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return metrics of the whole split (macro averages of precision, recall and F1), and those three by class.

    The macro average of recall is the balanced accuracy. The accuracy of the five best guesses is left out where five
    or fewer classes would make it 1.
    """
    prediction_N, num_classes = logits_NK.argmax(1), logits_NK.shape[1]
    by_class = measure_classes(prediction_N, labels_N, num_classes)
    overall = {
        "accuracy": (prediction_N == labels_N).double().mean().item(),
        **({f"top{TOP}_accuracy": top_accuracy(logits_NK, labels_N)} if num_classes > TOP else {}),
        **{name: values_K.mean().item() for name, values_K in by_class.items()},
        "loss": F.cross_entropy(logits_NK, labels_N).item(),
        "calibration_error": calibration_error(logits_NK, labels_N),
    }
    return overall, {name: values_K.tolist() for name, values_K in by_class.items()}


def measure_classes(predictions_N: Tensor, labels_N: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Return precision, recall and F1 float64 [K]; 0 where the denominator is 0."""
    hits_K = labels_N[predictions_N == labels_N].bincount(minlength=num_classes).double()
    predicted_K, actual_K = (values_N.bincount(minlength=num_classes) for values_N in (predictions_N, labels_N))
    return {
        "precision": hits_K / predicted_K.clamp(min=1),
        "recall": hits_K / actual_K.clamp(min=1),
        "f1": 2 * hits_K / (predicted_K + actual_K).clamp(min=1),
    }


def top_accuracy(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Return the share of the examples whose label is among the `TOP` classes with the highest logits."""
    return (logits_NK.topk(TOP).indices == labels_N.unsqueeze(1)).any(1).double().mean().item()


def predict_classes(logits_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the confidence, float64 [N], and the class of each prediction."""
    parts = [chunk_NK.double().softmax(1).max(1) for chunk_NK in logits_NK.split(CHUNK)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def calibration_error(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Return the expected calibration error: the mean gap between confidence and accuracy (Guo et al. 2017).

    The gap is that of each of `BINS` equal ranges of confidence, weighted by its share of the examples (arXiv
    1706.04599, equation 3).
    """
    confidence_N, prediction_N = predict_classes(logits_NK)
    bin_N = (confidence_N * BINS).ceil().long().clamp(1, BINS) - 1
    gap_N = confidence_N - (prediction_N == labels_N).double()
    gap_B = torch.zeros(BINS, dtype=torch.double).index_add(0, bin_N, gap_N)
    return gap_B.abs().sum().item() / len(labels_N)


def wilson_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a proportion (Wilson 1927), which stays within 0..1 and holds near both ends."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = correct / total, z * z / total
    center = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / total + spread / total / 4) / (1 + spread)
    # Rounding must not exclude the share itself when it is 0 or 1.
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))
