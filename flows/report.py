"""What a run shows in Prefect: stages, metrics against the base revision, confusion matrix, parity."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.client.schemas.objects import State

from flows.workspace import dvc

PREDICTIONS = Path("artifacts/plots/predictions.csv")
PARITY = Path("artifacts/metrics/parity.json")


def publish(folder: Path, states: Mapping[str, State[Any]]) -> None:
    """Make the artifacts; those whose files a failed run has not written are left out."""
    rows = [stage_row(stage, state) for stage, state in states.items()]
    create_table_artifact(rows, key="stages", description="What each stage did")
    if rows := metric_rows(json.loads(dvc(folder, "metrics", "diff", "--all", "--json", "HEAD"))):
        create_table_artifact(rows, key="metrics", description="Metrics against the base revision")
    if (folder / PREDICTIONS).exists():
        picture = base64.b64encode(draw_confusion(pl.read_csv(folder / PREDICTIONS))).decode()
        create_image_artifact(f"data:image/png;base64,{picture}", key="confusion-matrix", description="Test split")
    if (folder / PARITY).exists():
        report = json.loads((folder / PARITY).read_text())
        rows = [{"measure": name, "value": value} for name, value in report.items() if not isinstance(value, dict)]
        create_table_artifact(rows, key="parity", description="ONNX Runtime against PyTorch")


def stage_row(stage: str, state: State[Any]) -> dict[str, Any]:
    ended = state.is_completed() or state.is_failed() or state.is_crashed()
    took = state.message if state.is_completed() else ""
    return {"stage": stage, "state": state.name if ended else "Not run", "took": took}


def metric_rows(diff: Mapping[str, Any]) -> list[dict[str, str]]:
    """What `dvc metrics diff` says, a row per metric, with the direction of its change."""
    rows = []
    for path, metrics in sorted(diff.items()):
        for metric, values in sorted(metrics.items()):
            change = values.get("diff") or 0
            direction = "" if not change else f"▲ {change:+.5g}" if change > 0 else f"▼ {change:+.5g}"
            sides = (values.get("old"), values.get("new"))
            base, run = ("" if value is None else f"{value:.5g}" for value in sides)
            rows.append({"metric": f"{Path(path).stem}.{metric}", "base": base, "run": run, "change": direction})
    return rows


def draw_confusion(predictions: pl.DataFrame) -> bytes:
    """A PNG of the counts by label and prediction."""
    size = int(predictions.select(pl.max_horizontal(pl.max("label", "prediction"))).item()) + 1
    figure = Figure(figsize=(5, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    counts = predictions.group_by("label", "prediction").len()
    # logarithmic shades: the few mistakes are what one looks for
    shades = [[0.0] * size for _ in range(size)]
    for label, prediction, count in counts.iter_rows():
        axes.text(prediction, label, str(count), ha="center", va="center", fontsize=7)
        shades[label][prediction] = len(str(count))
    axes.imshow(shades, cmap="Blues", vmax=6)
    axes.set(xlabel="prediction", ylabel="label", xticks=range(size), yticks=range(size))
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
