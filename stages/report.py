"""Tell people what came of the run: a page to read in a browser, and a model card.

Reads what all other stages wrote, and the baseline's metrics in artifacts/baseline/DATASET/ if they are there.
Writes artifacts/report/index.html (one file, no network) and artifacts/report/MODEL_CARD.md. What the same inputs
would not give again (times, the last commit's metrics) goes to artifacts/report/local.js, no output of the stage: the
page shows it where it lies beside it and belongs to the same model.
Fails when a file is not what its stage wrote.

Shape suffixes: N images, C planes, H x W pixels.
"""

import base64
import io
import json
import re
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from pandera.polars import DataFrameSchema
from pandera.tensordict import TensorDictSchema
from PIL import Image
from tensordict import TensorDict

from stages.core import charts, schemas
from stages.core.artifacts import alone, read_table, replacing
from stages.core.checkpoint import Manifest, load_checkpoint
from stages.core.datasets import RAW, read_raw
from stages.core.errors import UserError, reported
from stages.core.onnx_model import OnnxModel
from stages.core.params import PARAMS, Params, Unsure, load_params, parse_params
from stages.core.sums import record, verify
from stages.core.tensors import validate_tensors
from stages.core.timing import read_time, timed

SUMMARY = Path("artifacts/normalized/summary.parquet")
DATA = Path("artifacts/details/normalize.json")
MODEL = Path("artifacts/model/model.pt")
HISTORY = Path("artifacts/plots/history.csv")
EVALUATION = Path("artifacts/metrics/evaluation.json")
EVALUATION_DETAILS = Path("artifacts/details/evaluation.json")
PER_CLASS = Path("artifacts/metrics/per_class.csv")
PREDICTIONS = Path("artifacts/plots/predictions.csv")
ONNX = Path("artifacts/onnx/model.onnx")
PARITY = Path("artifacts/metrics/parity.json")
PARITY_DETAILS = Path("artifacts/details/parity.json")
BASELINE = Path("artifacts/baseline")

PAGE = Path("artifacts/report/index.html")
CARD = Path("artifacts/report/MODEL_CARD.md")
LOCAL = Path("artifacts/report/local.js")

STAGES = ("download", "normalize", "train", "evaluate", "export", "parity")
MISTAKES = 50  # shown
PAIRS = 10  # of classes most confused, shown
SAMPLES = 12  # training images of a class, shown
LATENCY_RUNS = {1: 200, 256: 10}  # by batch size

# The metrics that the page compares with the baseline's and the last commit's: a name and a format for each.
HEADLINE = {
    "accuracy": ("Accuracy", ".2%"),
    "recall": ("Recall, mean of the classes", ".4f"),
    "precision": ("Precision, mean of the classes", ".4f"),
    "f1": ("F1, mean of the classes", ".4f"),
    "loss": ("Cross-entropy", ".4f"),
    "calibration_error": ("Calibration error", ".2%"),
    "coverage": ("Coverage: predictions that are sure", ".2%"),
    "risk": ("Risk: wrong ones among the sure", ".2%"),
    "different_labels": ("Parity: labels that differ", ",d"),
    "tolerance_used": ("Parity: largest difference, of what is allowed", ".1%"),
}


class Run(NamedTuple):
    """Hold what the other stages wrote."""

    params: Params
    manifest: Manifest
    weights: int  # how many the model has
    onnx: OnnxModel
    train: TensorDict  # raw
    test: TensorDict
    summary: pl.DataFrame
    history: pl.DataFrame
    predictions: pl.DataFrame
    per_class: pl.DataFrame
    data: dict[str, Any]
    evaluation: dict[str, Any]  # metrics and details
    parity: dict[str, Any]


def headline(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of the headline figures that are among the metrics; those of an older run may lack some."""
    texts = {}
    for name, (_, spec) in HEADLINE.items():
        with suppress(KeyError, TypeError, ValueError):
            texts[name] = format(metrics[name], spec)
    return texts


def png(image_HW: npt.NDArray[np.uint8]) -> str:
    """A data URL."""
    file = io.BytesIO()
    Image.fromarray(image_HW).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def worst_mistakes(predictions: pl.DataFrame, test: TensorDict, classes: list[str]) -> list[dict[str, Any]]:
    """The wrong predictions that the model was surest of, the surest first."""
    wrong = predictions.filter(pl.col("label") != pl.col("prediction"))
    worst = wrong.sort("confidence", "index", descending=[True, False]).head(MISTAKES)
    return [
        {
            "index": row["index"],
            "picture": png(test["image"][row["index"], 0].numpy()),
            "truth": classes[row["label"]],
            "guess": classes[row["prediction"]],
            "confidence": row["confidence"],
        }
        for row in worst.iter_rows(named=True)
    ]


def confused_pairs(predictions: pl.DataFrame, classes: list[str]) -> list[dict[str, Any]]:
    """True and predicted class with the number of such mistakes and their share of the true class's images."""
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


def sample_images(train: TensorDict, classes: list[str]) -> list[dict[str, Any]]:
    """The first training images of each class, side by side in one picture."""
    samples = []
    for label, name in enumerate(classes):
        rows = (train["label"] == label).nonzero().squeeze(1)[:SAMPLES]
        images_NHW = train["image"][rows, 0].numpy()
        samples.append({"class": name, "images": len(rows), "picture": png(np.concatenate([*images_NHW], axis=1))})
    return samples


def describe_splits(summary: pl.DataFrame) -> list[dict[str, Any]]:
    """Of each split the size, the images of each class, and what its pixels (0..255) are like."""
    mean, std = (pl.col(f"pixel_{name}").cast(pl.Float64) for name in ("mean", "std"))
    splits = []
    for name in schemas.SPLITS:
        split = summary.filter(split=name)
        # images are of one size, so the mean of their squares is that of all pixels
        deviation = ((std**2 + mean**2).mean() - mean.mean() ** 2).sqrt()
        pixels = split.select(mean=mean.mean(), deviation=deviation, darkest=mean.min(), brightest=mean.max())
        by_class = split.group_by("label").len().sort("label")["len"].to_list()
        splits.append({"name": name, "images": split.height, "by_class": by_class, **pixels.row(0, named=True)})
    return splits


def rules(schema: DataFrameSchema | TensorDictSchema) -> list[str]:
    """One line for each column of a schema, and one for each check of the whole."""
    columns: Mapping[Any, Any] = schema.columns if isinstance(schema, DataFrameSchema) else schema.keys
    lines = []
    for name, column in columns.items():
        kind = str(column.dtype).removeprefix("torch.")
        if shape := getattr(column, "shape", None):
            kind += f" [{', '.join('any' if size is None else str(size) for size in shape)}]"
        unique = ["unique"] if getattr(column, "unique", False) else []
        lines.append(f"{name}: {', '.join([kind, *unique, *(str(check.error) for check in column.checks)])}")
    return [*lines, *(str(check.error) for check in schema.checks or [])]


def checked(params: Params, manifest: Manifest, num_tested: int) -> list[dict[str, Any]]:
    """Every file between two stages with the rules that it was held to."""
    num_classes = len(manifest.classes)
    by_file: dict[str, DataFrameSchema | TensorDictSchema] = {
        f"{RAW / params.dataset}: train, test": schemas.raw(num_classes),
        str(SUMMARY): schemas.summary(num_classes),
        f"{SUMMARY.parent}: train, validation, test": schemas.normalized(num_classes, manifest.mean, manifest.std),
        str(HISTORY): schemas.history(),
        str(PREDICTIONS): schemas.predictions(num_classes, num_tested),
        str(PER_CLASS): schemas.per_class(),
    }
    return [{"file": file, "rules": rules(schema)} for file, schema in by_file.items()]


def parity_rows(by_input: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the largest difference for each kind of input, which is described in words."""
    words = {"all_0": "a black image", "all_255": "a white image", "noise": "images of random pixels"}
    return [
        (words.get(name) or f"test images in batches of {int(name.removeprefix('batch_')):,}", difference)
        for name, difference in by_input.items()
    ]


def measure_latency(model: OnnxModel, images_NCHW: npt.NDArray[np.uint8]) -> dict[int, float]:
    """Milliseconds that ONNX Runtime takes for a batch, the median of several runs, by batch size."""
    latency = {}
    for size, runs in LATENCY_RUNS.items():
        batch_NCHW = np.resize(images_NCHW, (size, *images_NCHW.shape[1:]))
        model.run(batch_NCHW)
        seconds = []
        for _ in range(runs):
            started = time.perf_counter()
            model.run(batch_NCHW)
            seconds.append(time.perf_counter() - started)
        latency[size] = median(seconds) * 1000
    return latency


def last_commit(dataset: str) -> tuple[str, dict[str, Any]]:
    """The short name of git's HEAD, and the metrics in it; empty where there are none of this data set."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout

    metrics: dict[str, Any] = {}
    with suppress(OSError, subprocess.CalledProcessError, ValueError):
        if parse_params(git("show", f"HEAD:./{PARAMS}"), PARAMS).dataset != dataset:
            return "", {}
        for path in (PARITY, EVALUATION):
            metrics |= json.loads(git("show", f"HEAD:./{path.as_posix()}"))
        return git("rev-parse", "--short", "HEAD").strip(), metrics
    return "", {}


def read_baseline(folder: Path) -> dict[str, Any]:
    """The metrics that are kept for comparison; empty where there are none."""
    metrics: dict[str, Any] = {}
    for path in (PARITY, EVALUATION):
        with suppress(OSError, ValueError, TypeError):
            metrics |= json.loads((folder / path.name).read_text(encoding="utf-8"))
    return metrics


def local_facts(model: OnnxModel, images_NCHW: npt.NDArray[np.uint8], dataset: str) -> dict[str, Any]:
    """The texts that the same inputs would not give again, by their places in the page, and whose model's they are."""
    commit, metrics = last_commit(dataset)
    facts = {f"commit.{name}": text for name, text in headline(metrics).items()}
    if facts:
        facts["commit"] = commit
    for stage in STAGES:
        if (seconds := read_time(stage)) is not None:
            facts[f"seconds.{stage}"] = f"{seconds:.1f} s"
    for size, milliseconds in measure_latency(model, images_NCHW).items():
        facts[f"latency.{size}"] = f"{milliseconds:.3g} ms"
        facts[f"throughput.{size}"] = f"{size / milliseconds * 1000:,.0f}"
    return {"model": model.sha256, "facts": facts}


def describe(manifest: Manifest) -> dict[str, str]:
    """The recipe's settings, a line for each section."""
    settings = manifest.settings.model_dump()
    return {
        name: ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
        for name, value in settings.items()
    }


def describe_threshold(manifest: Manifest, target: Unsure) -> str:
    """Say which target on the validation images set the confidence below which a prediction is unsure."""
    if manifest.unsure_by == "risk":
        return (
            f"The target on risk decided the limit: it is the lowest at which at most {target.risk:.2%} of the sure"
            f" validation images are labelled wrongly, and at least {target.coverage:.0%} of all are sure."
        )
    return (
        f"The target on coverage decided the limit: it is the highest at which at least {target.coverage:.0%} of the"
        f" validation images are sure; more than {target.risk:.2%} of these are labelled wrongly."
    )


def markdown(text: object) -> str:
    """Return the text on one line, with all characters escaped that mean something in Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>#|&~])", r"\\\1", " ".join(str(text).split()))


def percent(share: float, digits: int = 2) -> str:
    return f"{share:.{digits}%}"


def environment() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"percent": percent, "count": "{:,}".format, "markdown": markdown}
    return templates


def read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return values


def read_run(params: Params) -> Run:
    folder = RAW / params.dataset
    verify("download", folder)
    verify("normalize", SUMMARY, DATA)
    verify("train", MODEL, HISTORY)
    verify("evaluate", EVALUATION, EVALUATION_DETAILS, PER_CLASS, PREDICTIONS)
    verify("export", ONNX)
    verify("parity", PARITY, PARITY_DETAILS)
    model, manifest = load_checkpoint(MODEL)
    num_classes = len(manifest.classes)
    train, test = (read_raw(folder, split) for split in ("train", "test"))
    for data in (train, test):
        validate_tensors(data, schemas.raw(num_classes), folder)
    return Run(
        params=params,
        manifest=manifest,
        weights=sum(weight.numel() for weight in model.parameters()),
        onnx=OnnxModel(ONNX),
        train=train,
        test=test,
        summary=read_table(SUMMARY, schemas.summary(num_classes)),
        history=read_table(HISTORY, schemas.history()),
        predictions=read_table(PREDICTIONS, schemas.predictions(num_classes, len(test))),
        per_class=read_table(PER_CLASS, schemas.per_class()),
        data=read_json(DATA),
        evaluation=read_json(EVALUATION) | read_json(EVALUATION_DETAILS),
        parity=read_json(PARITY) | read_json(PARITY_DETAILS),
    )


def told(run: Run) -> dict[str, Any]:
    """What both templates tell of the run, beside itself."""
    return run._asdict() | {
        "onnx_bytes": ONNX.stat().st_size,
        "settings": describe(run.manifest),
        "threshold": describe_threshold(run.manifest, run.params.train.unsure),
        "labels": {name: label for name, (label, _) in HEADLINE.items()},
        "figures": headline(run.parity | run.evaluation),
        "baseline": headline(read_baseline(BASELINE / run.params.dataset)),
        "splits": describe_splits(run.summary),
        "pairs": confused_pairs(run.predictions, run.manifest.classes),
    }


def shown(run: Run) -> dict[str, Any]:
    """What only the page has: charts, pictures, tables of details."""
    classes = run.manifest.classes
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assert "</script" not in library
    return {
        "charts": {
            "loss": charts.learning_curve(run.history, "loss"),
            "accuracy": charts.learning_curve(run.history, "accuracy"),
            "confusion": charts.confusion(run.predictions, classes),
            "calibration": charts.calibration(run.predictions),
            "confidences": charts.confidences(run.predictions, run.manifest.unsure_below),
            "risk": charts.risk_by_coverage(run.predictions, run.evaluation["coverage"], run.evaluation["risk"]),
            "balance": charts.class_balance(run.summary, classes, schemas.SPLITS),
            "brightness": charts.brightness(run.summary, schemas.SPLITS),
        },
        "library": library,
        "wrong": run.predictions.filter(pl.col("label") != pl.col("prediction")).height,
        "mistakes": worst_mistakes(run.predictions, run.test, classes),
        "samples": sample_images(run.train, classes),
        "checked": checked(run.params, run.manifest, len(run.test)),
        "differences": parity_rows(run.parity["max_abs_diff_by_input"]),
        "legible": charts.LEGIBLE,
        "stages": STAGES,
        "latency_sizes": list(LATENCY_RUNS),
    }


def main() -> None:
    run = read_run(load_params())
    content, templates = told(run), environment()
    with replacing(PAGE) as partial:
        page = templates.get_template("report.html.jinja")
        partial.write_text(page.render(content, **shown(run)), encoding="utf-8")
    with replacing(CARD) as partial:
        card = templates.get_template("model_card.md.jinja")
        partial.write_text(card.render(content), encoding="utf-8")
    record("report", PAGE, CARD)
    facts = json.dumps(local_facts(run.onnx, run.test["image"].numpy(), run.params.dataset), indent=2)
    with replacing(LOCAL) as partial:
        partial.write_text(f"window.local = {facts};\n", encoding="utf-8")
    print(f"report: {PAGE.stat().st_size / 1e6:.1f} MB, in {PAGE}")


if __name__ == "__main__":
    with reported("report"), timed("report"), alone("report"):
        main()
