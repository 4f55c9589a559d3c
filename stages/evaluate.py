"""Measure the trained model on the test split.

Reads artifacts/model/ and artifacts/normalized/.
Writes artifacts/metrics/evaluation.json, the figures by which runs are compared; artifacts/details/evaluation.json, the
interval, counts and provenance; artifacts/metrics/per_class.csv and artifacts/plots/predictions.csv;
artifacts/audit/label_errors.csv, the validation and test images whose label is likely wrong.
Fails when the model and the data do not fit together.

Shape suffixes: N examples, K classes.
"""

import polars as pl
import torch
from torch import Tensor

from stages.core.config.params import load_params
from stages.core.data.splits import read_dataset
from stages.core.evaluation.calibration import count_unsure
from stages.core.evaluation.inference import infer
from stages.core.evaluation.label_errors import find_label_errors
from stages.core.evaluation.metrics import measure, predict_classes, wilson_interval
from stages.core.files import layout, schemas
from stages.core.files.errors import report_errors
from stages.core.files.exclusive import exclusive
from stages.core.files.tables import write_json, write_table
from stages.core.machine.device import describe_device, pick_device
from stages.core.machine.provenance import made_from
from stages.core.machine.threads import sharing_cores
from stages.core.nets.checkpoint import load_model
from stages.core.nets.manifest import check_data


def tabulate(logits_NK: Tensor, labels_N: Tensor) -> pl.DataFrame:
    """Return one row per example: its label, the prediction, and the probability that the model assigns to it."""
    confidence_N, prediction_N = predict_classes(logits_NK)
    return pl.DataFrame(
        {
            "index": range(len(labels_N)),
            "label": labels_N.numpy(),
            "prediction": prediction_N.numpy(),
            "confidence": confidence_N.numpy().round(6),
        }
    )


def tabulate_label_errors(logits_NK: Tensor, examples: pl.DataFrame, sure: float) -> pl.DataFrame:
    """Return one row per example whose label is likely wrong, the least probable label first.

    `examples` has the columns `id`, `split` and `label` of the N examples, on which the model was not trained; its
    predictions are sure from the confidence `sure` on.
    """
    found = find_label_errors(logits_NK, torch.from_numpy(examples["label"].to_numpy(writable=True)), sure)
    return examples[found.rows.numpy()].select(
        "id",
        "split",
        "label",
        suggested=pl.Series(found.suggested.numpy()),
        label_confidence=pl.Series(found.label_confidence.numpy()).round(6),
        suggested_confidence=pl.Series(found.suggested_confidence.numpy()).round(6),
    )


def main() -> None:
    params = load_params()
    layout.TRAIN.verify(layout.MODEL, layout.MANIFEST)
    layout.NORMALIZE.verify(layout.NORMALIZED)
    model, manifest = load_model()
    check_data(manifest)
    dataset, device = read_dataset(), pick_device(params.machine.device)
    held_out = {split: dataset.read(split) for split in ("validation", "test")}
    logits = {
        split: infer(model, torch.from_numpy(examples.inputs), device, params.evaluate.batch_size)
        for split, examples in held_out.items()
    }
    # The table of examples has these splits in the same order.
    untrained = dataset.examples.filter(pl.col("split").is_in([*held_out]))
    label_errors = tabulate_label_errors(torch.cat([*logits.values()]), untrained, manifest.unsure_below)

    logits_NK, labels_N = logits["test"], torch.from_numpy(held_out["test"].labels)
    overall, by_class = measure(logits_NK, labels_N)
    unsure, sure_errors = count_unsure(logits_NK, labels_N, manifest.unsure_below)
    sure = len(labels_N) - unsure
    overall |= {"coverage": sure / len(labels_N), "risk": sure_errors / max(sure, 1)}
    low, high = wilson_interval(int((logits_NK.argmax(1) == labels_N).sum()), len(labels_N))
    provenance = made_from(manifest.data_sha256, manifest.settings.model_dump())
    details = {
        "num_images": len(labels_N),
        "accuracy_low": low,
        "accuracy_high": high,
        "unsure_images": unsure,
        "sure_errors": sure_errors,
        "likely_mislabelled": {split: label_errors.filter(split=split).height for split in held_out},
        "made_from": {**provenance, "device": describe_device(device), "trained_on": manifest.environment},
    }
    classes = manifest.spec.classes
    counts_K = torch.bincount(labels_N, minlength=len(classes)).numpy()
    per_class = pl.DataFrame({"class": classes, "images": counts_K, **by_class})

    write_table(tabulate(logits_NK, labels_N), layout.PREDICTIONS, schemas.predictions(len(classes), len(labels_N)))
    write_table(per_class, layout.PER_CLASS, schemas.per_class())
    write_table(label_errors, layout.LABEL_ERRORS, schemas.label_errors(len(classes)))
    write_json(overall, layout.METRICS)
    write_json(details, layout.DETAILS)
    layout.EVALUATE.record(layout.METRICS, layout.DETAILS, layout.PER_CLASS, layout.PREDICTIONS, layout.LABEL_ERRORS)
    print(
        f"evaluate: accuracy {overall['accuracy']:.2%} ({low:.2%} to {high:.2%}),"
        f" recall {overall['recall']:.4f}, F1 {overall['f1']:.4f} on {len(labels_N):,} test images;"
        f" {unsure:,} predictions unsure, {sure_errors:,} of the others wrong"
    )


if __name__ == "__main__":
    with report_errors("evaluate"), exclusive("evaluate"), sharing_cores():
        main()
