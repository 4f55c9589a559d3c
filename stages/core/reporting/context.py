"""Collect the contents of the page and the model card."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import vl_convert
from pandera.polars import DataFrameSchema

from stages.core.config.params import Params
from stages.core.data.schemas import SPLITS, files, raw_labels
from stages.core.data.schemas import examples as examples_schema
from stages.core.data.splits import Split
from stages.core.deploy.onnx_model import OnnxModel
from stages.core.evaluation.config import CALIBRATION_BINS, Unsure
from stages.core.examples import image
from stages.core.examples.spec import Spec
from stages.core.files import layout, schemas
from stages.core.nets.manifest import Manifest
from stages.core.reporting import audit
from stages.core.reporting.headline import HEADLINE, format_headline, read_baseline
from stages.core.reporting.local import LATENCY_RUNS
from stages.core.training.config import Recipe

MISTAKES = 50  # shown
PAIRS = 10  # of classes that are confused most often, shown
SAMPLES = 12  # training examples of each class, shown
SHOWN_CLASSES = 50  # in charts, samples and sentences; more would be neither legible nor quick to draw
SIZES = 10  # of the original pictures, shown


class Run(NamedTuple):
    """Hold what the other stages wrote."""

    params: Params
    manifest: Manifest
    onnx: OnnxModel
    train: Split
    validation: Split
    test: Split
    examples: pl.DataFrame
    history: pl.DataFrame
    predictions: pl.DataFrame
    per_class: pl.DataFrame
    label_errors: pl.DataFrame
    data: dict[str, Any]
    evaluation: dict[str, Any]  # metrics and details
    parity: dict[str, Any]


def shared_context(run: Run) -> dict[str, Any]:
    """Return the values that both templates show."""
    return run._asdict() | {
        "onnx_bytes": layout.ONNX.stat().st_size,
        "settings": describe_settings(run.manifest.settings),
        "threshold": describe_threshold(run.manifest, run.params.train.unsure),
        "labels": {name: label for name, (label, _) in HEADLINE.items()},
        "figures": format_headline(run.parity | run.evaluation),
        "baseline": format_headline(read_baseline(layout.BASELINE / run.params.dataset)),
        "calibration_bins": CALIBRATION_BINS,
        "splits": describe_splits(run.examples, len(run.manifest.spec.classes)),
        "pairs": confused_pairs(run.predictions, run.manifest.spec.classes),
    }


def page_context(run: Run, findings: pl.DataFrame) -> dict[str, Any]:
    """Return the values that only the page shows: charts, pictures, the audit's findings, tables of details."""
    from stages.core.reporting import charts  # noqa: PLC0415  # Importing altair takes half a second.

    classes = run.manifest.spec.classes
    shown = choose_classes(run.predictions, classes)
    splits = {"train": run.train, "validation": run.validation, "test": run.test}
    sizes = audit.count_sizes(run.examples)
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assert "</script" not in library
    return {
        "charts": {
            "loss": charts.learning_curve(run.history, "loss"),
            "accuracy": charts.learning_curve(run.history, "accuracy"),
            "confusion": charts.confusion(run.predictions, shown),
            "calibration": charts.calibration(run.predictions),
            "confidences": charts.confidences(run.predictions, run.manifest.unsure_below),
            "risk": charts.risk_by_coverage(run.predictions, run.evaluation["coverage"], run.evaluation["risk"]),
            "balance": charts.class_balance(run.examples, shown, SPLITS),
            "brightness": charts.brightness(run.examples, SPLITS),
        },
        "library": library,
        "wrong": run.predictions.filter(pl.col("label") != pl.col("prediction")).height,
        "mistakes": worst_mistakes(run.predictions, run.test, classes),
        "samples": sample_examples(run.train, shown),
        "shown_classes": len(shown),
        "order": audit.describe_order(classes),
        "named_classes": classes[:SHOWN_CLASSES],
        "findings": audit.show_findings(findings, run.examples, splits),
        "shown_findings": audit.SHOWN,
        "sizes": sizes[:SIZES],
        "other_sizes": sizes[SIZES:],
        "files": describe_files(run.params.dataset, run.manifest.spec, len(run.test.labels)),
        "differences": parity_rows(run.parity["max_abs_diff_by_input"]),
        "legible": charts.LEGIBLE,
        "stages": ["download", *(outputs.stage for outputs in layout.TIMED)],
        "latency_sizes": list(LATENCY_RUNS),
    }


def choose_classes(predictions: pl.DataFrame, classes: list[str]) -> dict[int, str]:
    """Return the names of the classes to show, by label: all, or the `SHOWN_CLASSES` that are confused most often."""
    if len(classes) <= SHOWN_CLASSES:
        return dict(enumerate(classes))
    wrong = predictions.filter(pl.col("label") != pl.col("prediction"))
    mistakes_K = np.bincount(wrong.select("label", "prediction").to_numpy().ravel(), minlength=len(classes))
    chosen = np.argsort(-mistakes_K, kind="stable")[:SHOWN_CLASSES]
    return {label: classes[label] for label in sorted(chosen.tolist())}


def worst_mistakes(predictions: pl.DataFrame, test: Split, classes: list[str]) -> list[dict[str, Any]]:
    """Return the wrong predictions with the highest confidence, the highest first."""
    wrong = predictions.filter(pl.col("label") != pl.col("prediction"))
    worst = wrong.sort("confidence", "index", descending=[True, False]).head(MISTAKES)
    return [
        {
            "index": row["index"],
            "picture": image.draw(test.inputs[row["index"]][None]),
            "truth": classes[row["label"]],
            "guess": classes[row["prediction"]],
            "confidence": row["confidence"],
        }
        for row in worst.iter_rows(named=True)
    ]


def confused_pairs(predictions: pl.DataFrame, classes: list[str]) -> list[dict[str, Any]]:
    """Return the pairs of classes confused most often, with the number of mistakes and its share of the true class."""
    total = pl.len().over("label")
    pairs = (
        predictions.with_columns(total=total)
        .filter(pl.col("label") != pl.col("prediction"))
        .group_by("label", "prediction")
        .agg(images=pl.len(), share=pl.len() / pl.col("total").first())
        .sort("images", "label", "prediction", descending=[True, False, False])
    )
    return [
        {**row, "truth": classes[row["label"]], "guess": classes[row["prediction"]]}
        for row in pairs.head(PAIRS).iter_rows(named=True)
    ]


def sample_examples(train: Split, classes: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return the first training examples of each of these classes, side by side in one picture."""
    samples = []
    for label, name in classes.items():
        rows = np.flatnonzero(train.labels == label)[:SAMPLES]
        samples.append({"class": name, "images": len(rows), "picture": image.draw(train.inputs[rows])})
    return samples


def describe_splits(examples: pl.DataFrame, num_classes: int) -> list[dict[str, Any]]:
    """Return the size of each split, the number of examples of each class, and statistics of its raw inputs."""
    splits = []
    for name in SPLITS:
        split = examples.filter(split=name)
        by_class = np.bincount(split["label"].to_numpy(), minlength=num_classes).tolist()
        splits.append({"name": name, "images": split.height, "by_class": by_class, **image.summarize(split)})
    return splits


def describe_rules(schema: DataFrameSchema) -> list[str]:
    """Return one line for each column of a schema, and one for each check of the whole table."""
    lines = []
    for name, column in schema.columns.items():
        unique = ["unique"] if column.unique else []
        lines.append(
            f"{name}: {', '.join([str(column.dtype), *unique, *(str(check.error) for check in column.checks)])}"
        )
    return [*lines, *(str(check.error) for check in schema.checks or [])]


def describe_files(dataset: str, spec: Spec, num_tested: int) -> list[dict[str, Any]]:
    """Return every file between two stages with the rules that it was checked against."""
    num_classes = len(spec.classes)
    if (listed := layout.raw_files(dataset)).exists():
        raw_rules = {str(listed): files()}
    else:
        raw_rules = {f"{layout.raw_folder(dataset)}: labels": raw_labels(num_classes)}
    by_file = {
        **raw_rules,
        str(layout.EXAMPLES): examples_schema(num_classes),
        str(layout.HISTORY): schemas.history(),
        str(layout.PREDICTIONS): schemas.predictions(num_classes, num_tested),
        str(layout.PER_CLASS): schemas.per_class(),
        str(layout.LABEL_ERRORS): schemas.label_errors(num_classes),
        str(layout.AUDIT): audit.schema(),
    }
    arrays = f"{layout.NORMALIZED}/{{{','.join(SPLITS)}}}.npy"
    shape = f"{spec.dtype} [rows of the table, {', '.join(map(str, spec.shape))}]"
    return [
        {"file": arrays, "rules": [shape]},
        *({"file": file, "rules": describe_rules(schema)} for file, schema in by_file.items()),
    ]


def parity_rows(by_input: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return each kind of input, described in words, with its largest difference."""
    return [
        (image.UNNATURAL.get(name) or f"test images in batches of {int(name.removeprefix('batch_')):,}", difference)
        for name, difference in by_input.items()
    ]


def describe_settings(recipe: Recipe) -> dict[str, str]:
    """Return the settings of a recipe as one line of text for each section."""
    settings = recipe.model_dump()
    return {
        name: ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
        for name, value in settings.items()
    }


def describe_threshold(manifest: Manifest, target: Unsure) -> str:
    """Return a sentence about the target that set the confidence below which a prediction is unsure."""
    if manifest.unsure_by == "risk":
        return (
            f"The risk target decided this threshold: it is the lowest at which at most {target.risk:.2%} of the sure"
            f" validation images are classified incorrectly; at least {target.coverage:.0%} of all are sure."
        )
    return (
        f"The coverage target decided this threshold: it is the highest at which at least {target.coverage:.0%} of the"
        f" validation images are sure; more than {target.risk:.2%} of these are classified incorrectly."
    )
