"""A trained model's answers, and which of them are sure.

Shape suffixes: N images, K classes.
"""

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from stages.core.runtime import full_float32


def infer(model: nn.Module, data: TensorDict, device: torch.device, batch_size: int) -> Tensor:
    """Logits float32 [N, K] on the CPU, computed in float32."""
    model.to(device).eval()
    with torch.inference_mode(), full_float32():  # parity compares these predictions with a CPU's
        return torch.cat([model(batch["image"].to(device)).float().cpu() for batch in data.split(batch_size)])


def confidence_threshold(logits_NK: Tensor, labels_N: Tensor, accuracy: float) -> float:
    """The lowest confidence 0..1 such that of the predictions at or above it the share `accuracy` is right.

    1 where there is none. Confidence is the softmax's largest probability; selective classification as in Geifman &
    El-Yaniv 2017, arXiv 1705.08500, without its bound for unseen data.
    """
    confidence_N, prediction_N = logits_NK.double().softmax(1).max(1)
    confidence_N, order_N = confidence_N.sort(descending=True)
    right_N = (prediction_N == labels_N)[order_N].double().cumsum(0)
    enough_N = right_N >= accuracy * torch.arange(1, len(labels_N) + 1)
    enough_N[:-1] &= confidence_N[:-1] > confidence_N[1:]  # equal confidences are sure together or not at all
    return float(confidence_N[enough_N].min()) if enough_N.any() else 1.0


def count_unsure(logits_NK: Tensor, labels_N: Tensor, unsure_below: float) -> tuple[int, int]:
    """How many predictions are unsure, and how many of the sure ones are wrong."""
    confidence_N, prediction_N = logits_NK.double().softmax(1).max(1)
    unsure_N = confidence_N < unsure_below
    return int(unsure_N.sum()), int((~unsure_N & (prediction_N != labels_N)).sum())
