"""Prove that the exported file computes what the evaluated model computes.

Reads artifacts/onnx/model.onnx, artifacts/model/model.pt, the raw test images, their normalized tensors and the
predictions of the evaluation.
Writes artifacts/metrics/parity.json, the figures by which runs are compared, and artifacts/details/parity.json, the
verdict, the differences by input and the provenance.
Fails, after both are written, when logits differ by more than `parity.max_abs_diff`, when a label differs that is
no near-tie, or when PyTorch does not give the evaluation's predictions.

ONNX Runtime gets raw pixels and PyTorch the normalized tensors, so that the normalization in the file is proven, too.
Shape suffixes: N images, C = 1 channel, H x W pixels, K classes.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from stages.core import schemas
from stages.core.artifacts import alone, read_table, write_json
from stages.core.checkpoint import load_checkpoint
from stages.core.datasets import RAW, normalize_pixels, read_raw
from stages.core.errors import UserError, reported
from stages.core.onnx_model import OnnxModel
from stages.core.params import load_params
from stages.core.provenance import made_from
from stages.core.sums import record, verify
from stages.core.tensors import read_tensors, validate_tensors
from stages.core.threads import sharing_cores
from stages.core.timing import timed

ONNX = Path("artifacts/onnx/model.onnx")
MODEL = Path("artifacts/model/model.pt")
TEST = Path("artifacts/normalized/test")
PREDICTIONS = Path("artifacts/plots/predictions.csv")
METRICS = Path("artifacts/metrics/parity.json")
DETAILS = Path("artifacts/details/parity.json")


class Comparison(NamedTuple):
    """Hold how a runtime's answers differ from PyTorch's for the same images."""

    max_abs_diff: float  # of the logits
    different_labels: int  # beyond near-ties
    near_ties: int


def count_labels(labels_N: Tensor, pytorch_NK: Tensor, tolerance: float) -> tuple[int, int]:
    """Count the labels that differ from PyTorch's, and apart from them the near-ties, within `tolerance` of a logit."""
    best_N, given_N = pytorch_NK.max(1).values, pytorch_NK.gather(1, labels_N.unsqueeze(1)).squeeze(1)
    differs_N = labels_N != pytorch_NK.argmax(1)
    near_ties = int((differs_N & (best_N - given_N <= tolerance)).sum())
    return int(differs_N.sum()) - near_ties, near_ties


def compare(onnx_NK: Tensor, pytorch_NK: Tensor, tolerance: float) -> Comparison:
    """Compare logits float32 [N, K]; one that is not finite counts as the largest difference there is."""
    diff_NK = (onnx_NK - pytorch_NK).abs().nan_to_num(nan=torch.finfo(torch.float32).max)
    return Comparison(diff_NK.max().item(), *count_labels(onnx_NK.argmax(1), pytorch_NK, tolerance))


def check_signature(onnx_model: OnnxModel, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Raise `UserError` where the file does not take and give what the model does."""
    found = [*onnx_model.image_shape], [len(onnx_model.classes)]
    if found != ([*image_shape], [num_classes]):
        ours, theirs = f"images {found[0]} to {found[1]} logits", f"images {[*image_shape]} to [{num_classes}] logits"
        raise UserError(f"{ONNX} maps {ours}, {MODEL} maps {theirs}")


def run_onnx(onnx_model: OnnxModel, images_NCHW: Tensor, batch_size: int) -> Tensor:
    """Return logits for raw uint8 pixels."""
    return torch.cat([torch.from_numpy(onnx_model.run(batch.numpy())[0]) for batch in images_NCHW.split(batch_size)])


def run_pytorch(model: nn.Module, images_NCHW: Tensor, batch_size: int = 256) -> Tensor:
    """Return logits for normalized float32 pixels."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in images_NCHW.split(batch_size)])


def adversarial_images(shape: tuple[int, ...], count: int, seed: int) -> dict[str, Tensor]:
    """Return images uint8 [N, C, H, W] that no camera takes: black, white and random pixels."""
    noise = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return {
        "all_0": torch.zeros((1, *shape), dtype=torch.uint8),
        "all_255": torch.full((1, *shape), 255, dtype=torch.uint8),
        "noise": noise,
    }


def main() -> None:
    params = load_params()
    knobs, folder = params.parity, RAW / params.dataset
    verify("download", folder)
    verify("normalize", TEST)
    verify("train", MODEL)
    verify("evaluate", PREDICTIONS)
    verify("export", ONNX)
    onnx_model = OnnxModel(ONNX)
    model, manifest = load_checkpoint(MODEL)
    num_classes = len(manifest.classes)
    check_signature(onnx_model, manifest.image_shape, num_classes)
    raw = read_raw(folder, "test")
    validate_tensors(raw, schemas.raw(num_classes), folder)
    test = read_tensors(TEST, schemas.normalized(num_classes, manifest.mean, manifest.std))
    if raw["image"].shape != test["image"].shape:
        raise UserError(f"{folder} has test images {[*raw['image'].shape]}, {TEST} has {[*test['image'].shape]}")
    evaluated = read_table(PREDICTIONS, schemas.predictions(num_classes, len(test)))

    labels_N, pytorch_NK = test["label"], run_pytorch(model, test["image"])
    compared: dict[str, Comparison] = {}
    console = Console()
    sizes = sorted({min(size, len(test)) for size in knobs.batch_sizes})  # A batch is never larger than the split.
    for size in track(sizes, "parity", console=console, transient=True, disable=not console.is_terminal):
        onnx_NK = run_onnx(onnx_model, raw["image"], size)
        compared[f"batch_{size}"] = compare(onnx_NK, pytorch_NK, knobs.max_abs_diff)
    on_test = list(compared.values())
    for name, images in adversarial_images(manifest.image_shape, knobs.noise_images, params.seed).items():
        expected_NK = run_pytorch(model, normalize_pixels(images, manifest.mean, manifest.std))
        compared[name] = compare(run_onnx(onnx_model, images, len(images)), expected_NK, knobs.max_abs_diff)

    accuracy = {"onnx": onnx_NK.argmax(1) == labels_N, "pytorch": pytorch_NK.argmax(1) == labels_N}
    evaluated_N = torch.from_numpy(evaluated["prediction"].to_numpy(writable=True))
    provenance = made_from(manifest.data_sha256, manifest.settings.model_dump(), torch.device("cpu"))
    report: dict[str, Any] = {
        "max_abs_diff": max(result.max_abs_diff for result in compared.values()),
        "different_labels": sum(result.different_labels for result in compared.values()),
        "label_agreement": 1 - max(result.different_labels + result.near_ties for result in on_test) / len(test),
        "near_ties": sum(result.near_ties for result in compared.values()),
        "changed_since_evaluation": count_labels(evaluated_N, pytorch_NK, knobs.max_abs_diff)[0],
        **{f"accuracy_{name}": hits_N.double().mean().item() for name, hits_N in accuracy.items()},
        "num_images": len(test),
        "max_abs_diff_by_input": {name: result.max_abs_diff for name, result in compared.items()},
        "made_from": provenance | {"trained_on": manifest.trained_on, "onnx": onnx_model.sha256},
    }
    reasons = reasons_against(report, knobs.max_abs_diff)
    tolerance_used = report["max_abs_diff"] / knobs.max_abs_diff
    write_json({"tolerance_used": tolerance_used, "different_labels": report["different_labels"]}, METRICS)
    write_json({"proven": not reasons} | report, DETAILS)
    if reasons:
        raise UserError(f"{ONNX} does not compute what {MODEL} computes: {'; '.join(reasons)}; see {DETAILS}")
    record("parity", METRICS, DETAILS)
    print(
        f"parity: ONNX Runtime and PyTorch agree on {len(test):,} images at batch sizes {', '.join(map(str, sizes))};"
        f" largest difference {report['max_abs_diff']:.1e}, {tolerance_used:.1%} of what is allowed"
    )


def reasons_against(report: dict[str, Any], tolerance: float) -> list[str]:
    """Return every reason why this model must not be shipped."""
    reasons = []
    if report["max_abs_diff"] > tolerance:
        by_input = report["max_abs_diff_by_input"]
        worst = max(by_input, key=lambda name: float(by_input[name]))
        reasons.append(f"logits differ by {report['max_abs_diff']:.2e} ({worst}), allowed is {tolerance:.2e}")
    if report["different_labels"]:
        reasons.append(f"{report['different_labels']} labels differ")
    if report["changed_since_evaluation"]:
        reasons.append(f"{report['changed_since_evaluation']} predictions are not those of {PREDICTIONS}")
    return reasons


if __name__ == "__main__":
    with reported("parity"), timed("parity"), alone("parity"), sharing_cores():
        main()
