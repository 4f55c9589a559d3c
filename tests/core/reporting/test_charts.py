"""Test what the charts of the report show."""

import os
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import vl_convert

from stages.core.reporting import charts
from tests.conftest import PROJECT


def test_many_classes_leave_out_names_for_which_there_is_no_room() -> None:
    classes = {label: f"class {label}" for label in range(100)}
    predictions = pl.DataFrame({"label": range(100), "prediction": range(100)})
    svg = vl_convert.vegalite_to_svg({**charts.confusion(predictions, classes), "width": 800})
    assert svg.count(">class ") == 200  # on two axes
    assert 50 <= svg.count('opacity="0">class ') <= 150


def test_the_confusion_of_some_classes_leaves_out_all_others() -> None:
    predictions = pl.DataFrame({"label": [3, 3, 900, 900, 5], "prediction": [3, 900, 3, 5, 5]})
    chart = charts.confusion(predictions, {3: "cat", 900: "owl"})
    [rows] = chart["datasets"].values()
    assert [(row["label"], row["prediction"], row["images"]) for row in rows] == [
        ("cat", "cat", 1),
        ("cat", "owl", 1),
        ("owl", "cat", 1),
    ]


def test_the_balance_of_some_classes_is_their_share_of_the_whole_split() -> None:
    examples = pl.DataFrame({"split": ["train"] * 4, "label": [0, 0, 300, 1]})
    [rows] = charts.class_balance(examples, {0: "cat", 300: "owl"}, ["train"])["datasets"].values()
    assert [(row["label"], row["share"]) for row in rows] == [("cat", 0.5), ("owl", 0.25)]


def test_risk_by_coverage_by_hand() -> None:
    confidences = [0.9, 0.8, 0.8, 0.6]
    predictions = pl.DataFrame({"confidence": confidences, "label": [0, 0, 1, 0], "prediction": [0, 0, 0, 1]})
    data = charts.risk_by_coverage(predictions, coverage=0.75, risk=1 / 3)["datasets"].values()
    curve, chosen = sorted(data, key=len, reverse=True)
    assert [(row["coverage"], row["risk"]) for row in curve] == [(0.25, 0), (0.75, 1 / 3), (1, 0.5)]
    assert chosen == [{"coverage": 0.75, "risk": 1 / 3}]


@pytest.mark.slow
def test_the_calibration_is_the_same_with_any_number_of_threads(tmp_path: Path) -> None:
    """Polars takes the number when it is loaded."""
    draw = random.Random(1)
    pl.DataFrame(
        {"label": 1, "prediction": [draw.randint(0, 1) for _ in range(5000)]}
        | {"confidence": [round(draw.random(), 6) for _ in range(5000)]}
    ).write_parquet(tmp_path / "predictions.parquet")
    code = (
        "import json, polars; from stages.core.reporting.charts import calibration;"
        "print(polars.thread_pool_size(), json.dumps(calibration(polars.read_parquet('predictions.parquet'))))"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path,
            env=os.environ | {"POLARS_MAX_THREADS": threads, "PYTHONPATH": str(PROJECT)},
        ).stdout
        for threads in ("1", "3")
    ]  # fmt: skip
    assert printed[0].startswith("1 ")
    assert printed[1].startswith("3 ")
    assert printed[0][2:] == printed[1][2:]
