"""Draw the charts of the report, as Vega-Lite specifications.

Text and axes take the colour of the page, so a chart suits light mode, dark mode and print. It fills its container.
"""

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from stages.core.evaluation.config import CALIBRATION_BINS
from stages.core.examples.columns import BRIGHTNESS

INK, BLUE, ORANGE, GREEN = "currentColor", "#3b7dd8", "#e0701a", "#2f9e6e"
HEIGHT = 240  # CSS pixels
CONFIDENCE_BINS = 20
COVERAGE_PARTS = 200
BRIGHTNESS_BINS = 40
LEGIBLE = 20  # With more classes, a confusion matrix has no room for numbers, nor for a table beside it.
LABEL_WIDTH = 110  # CSS pixels of a class's name


def specification(chart: Any) -> dict[str, Any]:
    """Return the Vega-Lite specification of a chart, with what all charts have in common."""
    axis = {f"{part}Color": INK for part in ("label", "title", "domain", "tick", "grid")}
    themed = (
        chart.properties(width="container", background="transparent")
        .configure(font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(**axis, titleFontWeight="normal", gridOpacity=0.12, domainOpacity=0.4, tickOpacity=0.4)
        .configure_legend(labelColor=INK, orient="top", title=None)
        .configure_range(category=[BLUE, ORANGE, GREEN])
    )
    return themed.to_dict()


def class_axis(angle: int) -> alt.Axis:
    """Return an axis that shortens long names of classes and leaves out names for which there is no room."""
    return alt.Axis(labelAngle=angle, labelLimit=LABEL_WIDTH, labelOverlap="greedy")


def upright_if_short(classes: Mapping[int, str]) -> alt.Axis:
    """Return the horizontal axis of the classes, with labels rotated if any is longer than two characters."""
    return class_axis(0 if max(map(len, classes.values())) < 3 else -90)


def learning_curve(history: pl.DataFrame, measure: str) -> dict[str, Any]:
    """Plot `measure` (loss or accuracy) of the training and the validation images by epoch."""
    splits = {f"{split}_{measure}": split for split in ("train", "validation")}
    rows = history.rename(splits).unpivot(list(splits.values()), index="epoch", variable_name="split")
    chart = alt.Chart(rows, height=HEIGHT).mark_line(point=True)
    return specification(
        chart.encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False, padding=8)),
            y=alt.Y("value:Q", title=measure, scale=alt.Scale(zero=False)),
            color=alt.Color("split:N", sort=list(splits.values())),
            tooltip=["split", "epoch", alt.Tooltip("value:Q", title=measure, format=".4f")],
        )
    )


def confusion(predictions: pl.DataFrame, classes: Mapping[int, str]) -> dict[str, Any]:
    """Plot the numbers of images by true and predicted class, of these classes; only errors are shaded."""
    rows = (
        predictions.filter(pl.col("label").is_in([*classes]) & pl.col("prediction").is_in([*classes]))
        .group_by("label", "prediction", maintain_order=True)
        .agg(images=pl.len())
        .with_columns(right=pl.col("label") == pl.col("prediction"))
        .with_columns(pl.col("label", "prediction").replace_strict(classes, return_dtype=pl.String))
    )
    # The scale needs an upper end even if there are no mistakes.
    most = rows.filter(~pl.col("right")).select(pl.max("images")).item() or 1
    scale = alt.Scale(domain=[*classes.values()])
    cells = alt.Chart(rows, height=len(classes) * (28 if len(classes) <= LEGIBLE else 8)).encode(
        x=alt.X("prediction:N", title="predicted", scale=scale, axis=upright_if_short(classes)),
        y=alt.Y("label:N", title="true", scale=scale, axis=class_axis(0)),
        tooltip=[alt.Tooltip("label", title="true"), alt.Tooltip("prediction", title="predicted"), "images"],
    )
    right = cells.transform_filter("datum.right").mark_rect(color=BLUE, opacity=0.25)
    wrong = (
        cells.transform_filter("!datum.right")
        .mark_rect(color=ORANGE)
        .encode(opacity=alt.Opacity("images:Q", scale=alt.Scale(domain=[0, most], range=[0.1, 0.8]), legend=None))
    )
    counts = cells.mark_text(color=INK, fontSize=10).encode(text="images:Q")
    return specification(alt.layer(right, wrong, *([counts] if len(classes) <= LEGIBLE else [])))


def binned(predictions: pl.DataFrame, bins: int) -> pl.DataFrame:
    """Add the columns `bin`, the confidence's part of 0..1 (of `bins` equal ones, counted from 0), and `right`."""
    return predictions.with_columns(
        bin=(pl.col("confidence") * bins).floor().clip(0, bins - 1), right=pl.col("label") == pl.col("prediction")
    )


def calibration(predictions: pl.DataFrame) -> dict[str, Any]:
    """Plot accuracy by confidence (reliability diagram)."""
    # Sum whole numbers, because a sum of floats depends on the number of threads.
    millionths = (pl.col("confidence") * 1e6).round().cast(pl.Int64)
    rows = (
        binned(predictions, CALIBRATION_BINS)
        .group_by("bin")
        .agg(confidence=millionths.sum() / pl.len() / 1e6, accuracy=pl.col("right").mean(), images=pl.len())
        .sort("bin")
    )
    whole = alt.Scale(domain=[0, 1])
    ideal = pl.DataFrame({"confidence": [0.0, 1.0], "accuracy": [0.0, 1.0]})
    perfect = alt.Chart(ideal).mark_line(color=INK, opacity=0.4, strokeDash=[4, 4])
    measured = alt.Chart(rows, height=HEIGHT).mark_line(point={"size": 50}, color=BLUE)
    x, y = alt.X("confidence:Q", scale=whole), alt.Y("accuracy:Q", scale=whole)
    shown = [alt.Tooltip("confidence:Q", format=".3f"), alt.Tooltip("accuracy:Q", format=".3f"), "images"]
    return specification(perfect.encode(x=x, y=y) + measured.encode(x=x, y=y, tooltip=shown))


def confidences(predictions: pl.DataFrame, unsure_below: float) -> dict[str, Any]:
    """Plot the numbers of correct and wrong predictions by confidence, side by side in each part of 0..1."""
    width = 1 / CONFIDENCE_BINS
    start = pl.col("bin") * width + pl.when("right").then(0).otherwise(width / 2)
    rows = (
        binned(predictions, CONFIDENCE_BINS)
        .group_by("bin", "right")
        .agg(images=pl.len())
        .sort("bin", "right")
        .with_columns(start=start.round(4), end=(start + width / 2).round(4))
        .with_columns(outcome=pl.when("right").then(pl.lit("correct")).otherwise(pl.lit("wrong")))
    )
    bars = (
        alt.Chart(rows, height=HEIGHT)
        .mark_bar(binSpacing=0)
        .encode(
            x=alt.X("start:Q", title="confidence", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(grid=False)),
            x2="end:Q",
            y=alt.Y(
                "images:Q",
                title="images (logarithmic)",
                scale=alt.Scale(type="symlog"),
                axis=alt.Axis(values=[0, 1, 10, 100, 1000, 10_000, 100_000], format=",d"),
            ),
            y2=alt.datum(0),
            color=alt.Color("outcome:N", sort=["correct", "wrong"]),
            tooltip=["outcome", "images", alt.Tooltip("bin:Q", title="bin")],
        )
    )
    limit = alt.Chart(pl.DataFrame({"unsure_below": [unsure_below]})).mark_rule(color=INK, strokeDash=[4, 4])
    return specification(bars + limit.encode(x="unsure_below:Q", tooltip=alt.Tooltip("unsure_below:Q", format=".4f")))


def risk_by_coverage(predictions: pl.DataFrame, coverage: float, risk: float) -> dict[str, Any]:
    """Plot the share of wrong predictions among the surest by the share that is kept; mark the model's threshold."""
    rows = (
        predictions.group_by("confidence")  # Predictions of equal confidence are all sure or all unsure.
        .agg(images=pl.len(), wrong=(pl.col("label") != pl.col("prediction")).sum())
        .sort("confidence", descending=True)
        .with_columns(pl.col("images", "wrong").cum_sum())
        .select("confidence", coverage=pl.col("images") / predictions.height, risk=pl.col("wrong") / pl.col("images"))
        # The last row of each part is enough to draw the curve, whatever the number of images.
        .group_by(part=(pl.col("coverage") * COVERAGE_PARTS).ceil(), maintain_order=True)
        .last()
        .drop("part")
    )
    x = alt.X("coverage:Q", title="share of predictions that are sure", axis=alt.Axis(format="%"))
    y = alt.Y("risk:Q", title="share of these that are wrong", axis=alt.Axis(format="%"))
    shown = [alt.Tooltip(f"{name}:Q", format=".2%") for name in ("coverage", "risk", "confidence")]
    curve = alt.Chart(rows, height=HEIGHT).mark_line(color=BLUE).encode(x=x, y=y, tooltip=shown)
    chosen = alt.Chart(pl.DataFrame({"coverage": [coverage], "risk": [risk]})).mark_point(
        color=ORANGE, filled=True, size=80
    )
    return specification(curve + chosen.encode(x=x, y=y, tooltip=shown[:2]))


def class_balance(summary: pl.DataFrame, classes: Mapping[int, str], splits: list[str]) -> dict[str, Any]:
    """Plot the share of each of these classes in each split."""
    rows = (
        summary.drop_nulls("split")
        .group_by("split", "label")
        .agg(images=pl.len())
        .with_columns(share=pl.col("images") / pl.col("images").sum().over("split"))
        .filter(pl.col("label").is_in([*classes]))
        .sort("split", "label")
        .with_columns(pl.col("label").replace_strict(classes, return_dtype=pl.String))
    )
    return specification(
        alt.Chart(rows, height=HEIGHT)
        .mark_bar()
        .encode(
            x=alt.X("label:N", title="class", sort=[*classes.values()], axis=upright_if_short(classes)),
            xOffset=alt.XOffset("split:N", sort=splits),
            y=alt.Y("share:Q", title="share of the split", axis=alt.Axis(format="%")),
            color=alt.Color("split:N", sort=splits),
            tooltip=["split", alt.Tooltip("label", title="class"), "images", alt.Tooltip("share:Q", format=".2%")],
        )
    )


def brightness(examples: pl.DataFrame, splits: list[str]) -> dict[str, Any]:
    """Plot the distribution of brightness in each split."""
    summary = examples.drop_nulls("split")
    low, high = (float(summary.select(extreme).item()) for extreme in (pl.min("brightness"), pl.max("brightness")))
    width = (high - low) / BRIGHTNESS_BINS or 1.0
    place = ((pl.col("brightness") - low) / width).floor().clip(0, BRIGHTNESS_BINS - 1)
    rows = (
        summary.with_columns(brightness=(low + (place + 0.5) * width).cast(pl.Float64).round(2))
        .group_by("split", "brightness")
        .agg(images=pl.len())
        .with_columns(share=pl.col("images") / pl.col("images").sum().over("split"))
        .sort("split", "brightness")
    )
    return specification(
        alt.Chart(rows, height=HEIGHT)
        .mark_line()
        .encode(
            x=alt.X("brightness:Q", title=BRIGHTNESS),
            y=alt.Y("share:Q", title="share of the split", axis=alt.Axis(format="%")),
            color=alt.Color("split:N", sort=splits),
            tooltip=["split", "brightness", "images"],
        )
    )
