"""Measure the trained model on the test split.

Reads artifacts/model/model.pt and artifacts/normalized/test.
Writes artifacts/metrics/evaluation.json, artifacts/metrics/per_class.csv and artifacts/plots/predictions.csv.
Fails when the model and the data do not fit together.

Shape suffixes: N test images, K classes.
"""

from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from stages.core import schemas
from stages.core.artifacts import alone, write_json, write_table
from stages.core.checkpoint import load_checkpoint
from stages.core.errors import UserError, reported
from stages.core.inference import count_unsure, infer
from stages.core.params import load_params
from stages.core.provenance import made_from
from stages.core.runtime import pick_device
from stages.core.sums import digest, record, verify
from stages.core.tensors import read_tensors
from stages.core.timing import timed

MODEL = Path("artifacts/model/model.pt")
TEST = Path("artifacts/normalized/test")
METRICS = Path("artifacts/metrics/evaluation.json")
PER_CLASS = Path("artifacts/metrics/per_class.csv")
PREDICTIONS = Path("artifacts/plots/predictions.csv")


def wilson_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927), which stays within 0..1 and holds near both ends."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = correct / total, z * z / total
    center = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / total + spread / total / 4) / (1 + spread)
    # rounding must not put the share itself outside, at 0 and at 1
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))


def measure(logits_NK: Tensor, labels_N: Tensor) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Metrics of the whole split (precision, recall and F1 as macro means), and precision, recall and F1 by class."""
    num_classes = logits_NK.shape[1]
    by_class = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}
    metrics = MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            # Guo et al. 2017, arXiv 1706.04599, 15 bins
            "calibration_error": MulticlassCalibrationError(num_classes, n_bins=15, norm="l1"),
            **{name: metric(num_classes, average="none") for name, metric in by_class.items()},
        }
    )
    values = metrics(logits_NK.softmax(1), labels_N)
    correct = int((logits_NK.argmax(1) == labels_N).sum())
    low, high = wilson_interval(correct, len(labels_N))
    overall = {
        "accuracy": correct / len(labels_N),
        "accuracy_low": low,
        "accuracy_high": high,
        **{name: values[name].mean().item() for name in by_class},
        "loss": F.cross_entropy(logits_NK, labels_N).item(),
        "calibration_error": values["calibration_error"].item(),
        "num_images": len(labels_N),
    }
    return overall, {name: values[name].tolist() for name in by_class}


def tabulate(logits_NK: Tensor, labels_N: Tensor) -> pl.DataFrame:
    """One row per image: its label, the prediction, and the probability that the model gives it."""
    confidence_N, prediction_N = logits_NK.double().softmax(1).max(1)
    return pl.DataFrame(
        {
            "index": range(len(labels_N)),
            "label": labels_N.numpy(),
            "prediction": prediction_N.numpy(),
            "confidence": confidence_N.numpy().round(6),
        }
    )


def main() -> None:
    params = load_params()
    verify("train", MODEL)
    verify("normalize", TEST)
    model, manifest = load_checkpoint(MODEL)
    num_classes = len(manifest.classes)
    test = read_tensors(TEST, schemas.normalized(num_classes, manifest.mean, manifest.std))
    if manifest.data_sha256 != digest("normalize", TEST.parent):
        raise UserError(f"{MODEL} was trained on other data than those in {TEST.parent}; `dvc repro` trains it anew")
    if (found := tuple(test["image"].shape[1:])) != manifest.image_shape:
        raise UserError(f"{MODEL} takes images of shape {manifest.image_shape}, those in {TEST} have {found}")
    labels_N, device = test["label"].clone(), pick_device(params.device)
    logits_NK = infer(model, test, device, params.evaluate.batch_size)
    overall, by_class = measure(logits_NK, labels_N)
    unsure, sure_errors = count_unsure(logits_NK, labels_N, manifest.unsure_below)
    overall |= {"unsure_below": manifest.unsure_below, "unsure_images": unsure, "sure_errors": sure_errors}
    provenance = made_from(manifest.data_sha256, manifest.settings.model_dump(), device)
    overall["made_from"] = provenance | {"trained_on": manifest.trained_on}
    per_class = pl.DataFrame(
        {"class": manifest.classes, "images": torch.bincount(labels_N, minlength=num_classes).numpy(), **by_class}
    )
    write_table(tabulate(logits_NK, labels_N), PREDICTIONS, schemas.predictions(num_classes, len(labels_N)))
    write_table(per_class, PER_CLASS, schemas.per_class())
    write_json(overall, METRICS)
    record("evaluate", METRICS, PER_CLASS, PREDICTIONS)
    print(
        f"evaluate: accuracy {overall['accuracy']:.2%}"
        f" ({overall['accuracy_low']:.2%} to {overall['accuracy_high']:.2%}),"
        f" recall {overall['recall']:.4f}, F1 {overall['f1']:.4f} on {len(labels_N):,} test images;"
        f" unsure of {unsure:,}, wrong in {sure_errors:,} of the others"
    )


if __name__ == "__main__":
    with reported("evaluate"), timed("evaluate"), alone("evaluate"):
        main()
