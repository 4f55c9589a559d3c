"""Measure the trained model on the test split.

Reads artifacts/model/model.pt and artifacts/normalized/test.
Writes artifacts/metrics/evaluation.json, the figures by which runs are compared; artifacts/details/evaluation.json, the
interval, counts and provenance; artifacts/metrics/per_class.csv and artifacts/plots/predictions.csv.
Fails when the model and the data do not fit together.

Shape suffixes: N test images, K classes.
"""

from math import sqrt
from pathlib import Path
from statistics import NormalDist

import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
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
from stages.core.threads import sharing_cores
from stages.core.timing import timed

MODEL = Path("artifacts/model/model.pt")
TEST = Path("artifacts/normalized/test")
METRICS = Path("artifacts/metrics/evaluation.json")
DETAILS = Path("artifacts/details/evaluation.json")
PER_CLASS = Path("artifacts/metrics/per_class.csv")
PREDICTIONS = Path("artifacts/plots/predictions.csv")


def wilson_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a proportion (Wilson 1927), which stays within 0..1 and holds near both ends."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = correct / total, z * z / total
    center = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / total + spread / total / 4) / (1 + spread)
    # Rounding must not exclude the share itself when it is 0 or 1.
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))


def measure(logits_NK: Tensor, labels_N: Tensor) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return metrics of the whole split (macro means of precision, recall and F1), and those three by class."""
    num_classes = logits_NK.shape[1]
    by_class = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}
    metrics = MetricCollection(
        {
            # Guo et al. 2017, arXiv 1706.04599, 15 bins
            "calibration_error": MulticlassCalibrationError(num_classes, n_bins=15, norm="l1"),
            **{name: metric(num_classes, average="none") for name, metric in by_class.items()},
        }
    )
    values = metrics(logits_NK.softmax(1), labels_N)
    overall = {
        "accuracy": (logits_NK.argmax(1) == labels_N).double().mean().item(),
        **{name: values[name].mean().item() for name in by_class},
        "loss": F.cross_entropy(logits_NK, labels_N).item(),
        "calibration_error": values["calibration_error"].item(),
    }
    return overall, {name: values[name].tolist() for name in by_class}


def tabulate(logits_NK: Tensor, labels_N: Tensor) -> pl.DataFrame:
    """Return one row per image: its label, the prediction, and the probability that the model gives it."""
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
    sure = len(labels_N) - unsure
    overall |= {"coverage": sure / len(labels_N), "risk": sure_errors / max(sure, 1)}
    low, high = wilson_interval(int((logits_NK.argmax(1) == labels_N).sum()), len(labels_N))
    provenance = made_from(manifest.data_sha256, manifest.settings.model_dump(), device)
    details = {
        "num_images": len(labels_N),
        "accuracy_low": low,
        "accuracy_high": high,
        "unsure_images": unsure,
        "sure_errors": sure_errors,
        "made_from": provenance | {"trained_on": manifest.trained_on},
    }
    per_class = pl.DataFrame(
        {"class": manifest.classes, "images": torch.bincount(labels_N, minlength=num_classes).numpy(), **by_class}
    )
    write_table(tabulate(logits_NK, labels_N), PREDICTIONS, schemas.predictions(num_classes, len(labels_N)))
    write_table(per_class, PER_CLASS, schemas.per_class())
    write_json(overall, METRICS)
    write_json(details, DETAILS)
    record("evaluate", METRICS, DETAILS, PER_CLASS, PREDICTIONS)
    print(
        f"evaluate: accuracy {overall['accuracy']:.2%} ({low:.2%} to {high:.2%}),"
        f" recall {overall['recall']:.4f}, F1 {overall['f1']:.4f} on {len(labels_N):,} test images;"
        f" unsure of {unsure:,}, wrong in {sure_errors:,} of the others"
    )


if __name__ == "__main__":
    with reported("evaluate"), timed("evaluate"), alone("evaluate"), sharing_cores():
        main()
