"""Verify that the exported file gives the same answers as the evaluated model.

Reads artifacts/onnx/model.onnx, artifacts/model/, artifacts/normalized/ and the predictions of the evaluation.
Writes artifacts/metrics/parity.json, the figures by which runs are compared, and artifacts/details/parity.json, the
verdict, the differences by input and the provenance.
Fails when the model and the data do not fit together; after both files are written, when logits differ by more than
`parity.max_abs_diff`, when a label differs that is not a near-tie, or when PyTorch does not reproduce the evaluation's
predictions.

Shape suffixes: N examples, K classes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from stages.core.config.params import load_params
from stages.core.data.splits import Split, read_dataset
from stages.core.deploy.config import Parity
from stages.core.deploy.onnx_model import OnnxModel
from stages.core.evaluation.inference import infer
from stages.core.examples import image
from stages.core.examples.spec import Spec
from stages.core.files import layout, schemas
from stages.core.files.errors import UserError, report_errors
from stages.core.files.exclusive import exclusive
from stages.core.files.tables import read_table, write_json
from stages.core.machine.device import describe_device
from stages.core.machine.provenance import made_from
from stages.core.machine.threads import sharing_cores
from stages.core.nets.checkpoint import load_model
from stages.core.nets.manifest import check_data

PYTORCH_BATCH_SIZE = 256
CPU = torch.device("cpu")


class Comparison(NamedTuple):
    """Hold the differences between a runtime's answers and PyTorch's for the same inputs."""

    max_abs_diff: float  # of the logits
    different_labels: int  # beyond near-ties
    near_ties: int


def count_labels(labels_N: Tensor, pytorch_NK: Tensor, tolerance: float) -> tuple[int, int]:
    """Count the labels that differ from PyTorch's, near-ties (logits within `tolerance` of the best) separately."""
    best_N, given_N = pytorch_NK.max(1).values, pytorch_NK.gather(1, labels_N.unsqueeze(1)).squeeze(1)
    differs_N = labels_N != pytorch_NK.argmax(1)
    near_ties = int((differs_N & (best_N - given_N <= tolerance)).sum())
    return int(differs_N.sum()) - near_ties, near_ties


def compare(onnx_NK: Tensor, pytorch_NK: Tensor, tolerance: float) -> Comparison:
    """Compare logits float32 [N, K]; one that is not finite counts as the largest possible difference."""
    diff_NK = (onnx_NK - pytorch_NK).abs().nan_to_num(nan=torch.finfo(torch.float32).max)
    return Comparison(diff_NK.max().item(), *count_labels(onnx_NK.argmax(1), pytorch_NK, tolerance))


def run_onnx(onnx_model: OnnxModel, inputs: NDArray[np.generic], batch_size: int) -> Tensor:
    """Return logits for raw inputs, computed in batches of this size."""
    starts = range(0, len(inputs), batch_size)
    return torch.cat([torch.from_numpy(onnx_model.run(inputs[start : start + batch_size])[0]) for start in starts])


def run_pytorch(model: nn.Module, inputs: NDArray[np.generic]) -> Tensor:
    """Return logits for raw inputs, computed on the CPU."""
    return infer(model, torch.from_numpy(inputs), CPU, PYTORCH_BATCH_SIZE)


def compare_on_inputs(
    onnx_model: OnnxModel, model: nn.Module, test: Split, pytorch_NK: Tensor, *, knobs: Parity, seed: int
) -> tuple[dict[str, Comparison], Tensor]:
    """Compare the two models on the test split at every batch size and on adversarial inputs.

    Return the comparisons by the name of the input, and ONNX Runtime's logits for the test split.
    """
    comparisons, console = {}, Console()
    # A batch is never larger than the split.
    sizes = sorted({min(size, len(test.labels)) for size in knobs.batch_sizes})
    for size in track(sizes, "parity", console=console, transient=True, disable=not console.is_terminal):
        onnx_NK = run_onnx(onnx_model, test.inputs, size)
        comparisons[f"batch_{size}"] = compare(onnx_NK, pytorch_NK, knobs.max_abs_diff)
    for name, inputs in image.adversarial(onnx_model.spec, knobs.noise_images, seed).items():
        expected_NK = run_pytorch(model, inputs)
        comparisons[name] = compare(run_onnx(onnx_model, inputs, len(inputs)), expected_NK, knobs.max_abs_diff)
    return comparisons, onnx_NK


def summarize(
    comparisons: Mapping[str, Comparison],
    onnx_NK: Tensor,
    pytorch_NK: Tensor,
    labels_N: Tensor,
    *,
    evaluated_N: Tensor,
    tolerance: float,
) -> dict[str, Any]:
    """Return the figures of the comparison."""
    on_test = [comparison for name, comparison in comparisons.items() if name.startswith("batch_")]
    logits = {"onnx": onnx_NK, "pytorch": pytorch_NK}
    return {
        "max_abs_diff": max(comparison.max_abs_diff for comparison in comparisons.values()),
        "different_labels": sum(comparison.different_labels for comparison in comparisons.values()),
        "label_agreement": 1 - max(each.different_labels + each.near_ties for each in on_test) / len(labels_N),
        "near_ties": sum(comparison.near_ties for comparison in comparisons.values()),
        "changed_since_evaluation": count_labels(evaluated_N, pytorch_NK, tolerance)[0],
        **{
            f"accuracy_{name}": (logits_NK.argmax(1) == labels_N).double().mean().item()
            for name, logits_NK in logits.items()
        },
        "num_images": len(labels_N),
        "max_abs_diff_by_input": {name: comparison.max_abs_diff for name, comparison in comparisons.items()},
    }


def reasons_against(figures: dict[str, Any], tolerance: float) -> list[str]:
    """Return every reason why this model must not be shipped."""
    reasons = []
    if figures["max_abs_diff"] > tolerance:
        by_input = figures["max_abs_diff_by_input"]
        worst = max(by_input, key=lambda name: float(by_input[name]))
        reasons.append(f"logits differ by {figures['max_abs_diff']:.2e} ({worst}), allowed: at most {tolerance:.2e}")
    if figures["different_labels"]:
        reasons.append(f"{figures['different_labels']} labels differ")
    if figures["changed_since_evaluation"]:
        reasons.append(f"{figures['changed_since_evaluation']} predictions differ from those in {layout.PREDICTIONS}")
    return reasons


def check_specs(onnx_spec: Spec, model_spec: Spec) -> None:
    """Raise `UserError` unless the exported file states the same spec as the model."""
    if onnx_spec != model_spec:
        raise UserError(f"{layout.ONNX} has the spec {onnx_spec}, {layout.MODEL} has {model_spec}")


def main() -> None:
    params = load_params()
    knobs = params.parity
    layout.NORMALIZE.verify(layout.NORMALIZED)
    layout.TRAIN.verify(layout.MODEL, layout.MANIFEST)
    layout.EVALUATE.verify(layout.PREDICTIONS)
    layout.EXPORT.verify(layout.ONNX)
    onnx_model, (model, manifest) = OnnxModel(layout.ONNX), load_model()
    check_data(manifest)
    check_specs(onnx_model.spec, manifest.spec)
    test = read_dataset().read("test")
    labels_N = torch.from_numpy(test.labels)
    schema = schemas.predictions(len(manifest.spec.classes), len(labels_N))
    evaluated: pl.DataFrame = read_table(layout.PREDICTIONS, schema)
    evaluated_N = torch.from_numpy(evaluated["prediction"].to_numpy(writable=True))

    pytorch_NK = run_pytorch(model, test.inputs)
    comparisons, onnx_NK = compare_on_inputs(onnx_model, model, test, pytorch_NK, knobs=knobs, seed=params.seed)
    figures = summarize(
        comparisons, onnx_NK, pytorch_NK, labels_N, evaluated_N=evaluated_N, tolerance=knobs.max_abs_diff
    )

    reasons = reasons_against(figures, knobs.max_abs_diff)
    tolerance_used = figures["max_abs_diff"] / knobs.max_abs_diff
    made = made_from(manifest.data_sha256, manifest.settings.model_dump()) | {
        "device": describe_device(CPU),
        "trained_on": manifest.environment,
        "onnx": onnx_model.sha256,
    }
    write_json(
        {"tolerance_used": tolerance_used, "different_labels": figures["different_labels"]}, layout.PARITY_METRICS
    )
    write_json({"proven": not reasons, **figures, "made_from": made}, layout.PARITY_DETAILS)
    if reasons:
        raise UserError(
            f"{layout.ONNX} does not match {layout.MODEL}: {'; '.join(reasons)}; see {layout.PARITY_DETAILS}"
        )
    layout.PARITY.record(layout.PARITY_METRICS, layout.PARITY_DETAILS)
    sizes = ", ".join(name.removeprefix("batch_") for name in comparisons if name.startswith("batch_"))
    print(
        f"parity: ONNX Runtime and PyTorch agree on {len(labels_N):,} images at batch sizes {sizes};"
        f" largest difference {figures['max_abs_diff']:.1e}, {tolerance_used:.1%} of the tolerance"
    )


if __name__ == "__main__":
    with report_errors("parity"), exclusive("parity"), sharing_cores():
        main()
