"""Show a run in Prefect: its stages, metrics compared with the base revision, confusion matrix and parity."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image, ImageDraw, ImageFont
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.client.schemas.objects import State

from flows.graph import read_metrics_diff
from stages.core.files.layout import PARITY_DETAILS, PREDICTIONS

CELL = 48  # pixels


def publish(folder: Path, states: Mapping[str, State[Any]]) -> None:
    """Create Prefect's artifacts, except those whose files a failed run has not written."""
    rows = [stage_row(stage, state) for stage, state in states.items()]
    create_table_artifact(rows, key="stages", description="Result of each stage")
    if rows := metric_rows(read_metrics_diff(folder)):
        create_table_artifact(rows, key="metrics", description="Metrics compared with the base revision")
    if (folder / PREDICTIONS).exists():
        picture = base64.b64encode(draw_confusion(pl.read_csv(folder / PREDICTIONS))).decode()
        create_image_artifact(f"data:image/png;base64,{picture}", key="confusion-matrix", description="Test split")
    if (folder / PARITY_DETAILS).exists():
        report = json.loads((folder / PARITY_DETAILS).read_text())
        rows = [{"measure": name, "value": value} for name, value in report.items() if not isinstance(value, dict)]
        create_table_artifact(rows, key="parity", description="ONNX Runtime compared with PyTorch")


def stage_row(stage: str, state: State[Any]) -> dict[str, Any]:
    """Return a row with the final state of a stage and, if it has completed, the time that it took."""
    ended = state.is_completed() or state.is_failed() or state.is_crashed()
    took = state.message if state.is_completed() else ""
    return {"stage": stage, "state": state.name if ended else "Not run", "took": took}


def metric_rows(diff: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row for each metric of `dvc metrics diff`, with the direction of its change."""
    rows = []
    for path, metrics in sorted(diff.items()):
        for metric, values in sorted(metrics.items()):
            sides = (values.get("old"), values.get("new"))
            if any(isinstance(value, str) for value in sides):  # A metric may be text.
                base, run = (value or "" for value in sides)
                direction = "" if base == run else "changed"
            else:
                base, run = ("" if value is None else f"{value:.5g}" for value in sides)
                change = values.get("diff") or 0
                direction = "" if not change else f"▲ {change:+.5g}" if change > 0 else f"▼ {change:+.5g}"
            rows.append({"metric": f"{Path(path).stem}.{metric}", "base": base, "run": run, "change": direction})
    return rows


def draw_confusion(predictions: pl.DataFrame) -> bytes:
    """Return a PNG of the confusion matrix: the counts by label (rows) and prediction (columns)."""
    size = int(predictions.select(pl.max_horizontal(pl.max("label", "prediction"))).item()) + 1
    font, edge = ImageFont.load_default(size=14), CELL * (size + 2)
    picture = Image.new("RGB", (edge, edge), "white")
    draw = ImageDraw.Draw(picture)

    def write(column: float, row: float, text: str, color: str = "black") -> None:
        draw.text((CELL * (column + 1.5), CELL * (row + 1.5)), text, color, font, anchor="mm")

    for index in range(size):
        write(index, -1, str(index))
        write(-1, index, str(index))
    write((size - 1) / 2, size, "columns: prediction, rows: label")
    for label, prediction, count in predictions.group_by("label", "prediction").len().iter_rows():
        left, top = CELL * (prediction + 1), CELL * (label + 1)
        # The shade depends on the number of digits, so that even a few mistakes are visible.
        shade = ("#deebf7", "#9ecae1", "#4292c6", "#08519c")[min(len(str(count)), 4) - 1]
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), shade)
        write(prediction, label, str(count), "white" if count >= 100 else "black")
    png = io.BytesIO()
    picture.save(png, format="png")
    return png.getvalue()
