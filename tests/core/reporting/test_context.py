"""Test the texts and tables that the report shows."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest

from stages.core.data.splits import Split
from stages.core.evaluation.config import Unsure
from stages.core.files import layout
from stages.core.nets.manifest import read_manifest
from stages.core.reporting.context import (
    MISTAKES,
    PAIRS,
    SAMPLES,
    SHOWN_CLASSES,
    choose_classes,
    confused_pairs,
    describe_files,
    describe_splits,
    describe_threshold,
    parity_rows,
    sample_examples,
    worst_mistakes,
)
from tests.conftest import make_spec

CLASSES = ["cat", "dog", "owl"]


def predict(*rows: tuple[int, int, float]) -> pl.DataFrame:
    """Return the table of these labels, predictions and confidences."""
    schema = {"label": pl.Int64, "prediction": pl.Int64, "confidence": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row").with_row_index("index")


def make_split(count: int) -> Split:
    inputs = np.random.default_rng(1).integers(256, size=(count, 1, 4, 5), dtype=np.uint8)
    return Split(inputs, np.arange(count) % 3)


@pytest.mark.parametrize("decided", ["risk", "coverage"])
def test_the_target_that_decided_the_limit_is_named(finished: Path, decided: Literal["risk", "coverage"]) -> None:
    manifest = read_manifest(finished / layout.MANIFEST)
    target = Unsure(risk=0.001, coverage=0.8)
    text = describe_threshold(manifest.model_copy(update={"unsure_by": decided}), target)
    assert text.startswith(f"The {decided} target decided this threshold: ")
    assert "0.10%" in text
    assert "80%" in text


def test_the_surest_mistakes_come_first() -> None:
    table = predict((0, 0, 0.99), (0, 1, 0.5), (1, 2, 0.9), (2, 2, 0.7), (2, 0, 0.9))
    shown: list[dict[str, Any]] = worst_mistakes(table, make_split(5), CLASSES)
    assert [(row["index"], row["truth"], row["guess"], row["confidence"]) for row in shown] == [
        (2, "dog", "owl", 0.9),
        (4, "owl", "cat", 0.9),
        (1, "cat", "dog", 0.5),
    ]
    assert len({row["picture"] for row in shown}) == 3
    many = predict(*[(0, 1, 0.5)] * (MISTAKES + 7))
    assert [row["index"] for row in worst_mistakes(many, make_split(MISTAKES + 7), CLASSES)] == list(range(MISTAKES))


def test_confused_pairs_by_hand() -> None:
    table = predict((0, 1, 0.5), (0, 1, 0.5), (0, 0, 0.5), (0, 0, 0.5), (1, 0, 0.5), (2, 2, 0.5), (2, 0, 0.5))
    found = [(pair["truth"], pair["guess"], pair["images"], pair["share"]) for pair in confused_pairs(table, CLASSES)]
    assert found == [("cat", "dog", 2, 0.5), ("dog", "cat", 1, 1.0), ("owl", "cat", 1, 0.5)]
    classes = [str(label) for label in range(PAIRS + 5)]
    every = predict(*[(label, (label + 1) % len(classes), 0.5) for label in range(len(classes))])
    assert len(confused_pairs(every, classes)) == PAIRS


def test_up_to_fifty_classes_are_all_shown() -> None:
    table = predict((0, 1, 0.5))
    assert choose_classes(table, CLASSES) == {0: "cat", 1: "dog", 2: "owl"}
    assert len(choose_classes(table, [str(label) for label in range(SHOWN_CLASSES)])) == SHOWN_CLASSES


def test_of_thousands_of_classes_those_confused_most_often_are_shown() -> None:
    names = [str(label) for label in range(10_000)]
    right = [(label, label, 0.5) for label in range(10_000)]
    shown = choose_classes(predict(*right, (9000, 7000, 0.5), (7000, 300, 0.5), (7000, 1, 0.5)), names)
    assert {1, 300, 7000, 9000} < set(shown)
    assert len(shown) == SHOWN_CLASSES
    assert [*shown] == sorted(shown)
    assert all(name == str(label) for label, name in shown.items())


def test_samples_are_the_first_of_each_class() -> None:
    classes = dict(enumerate(CLASSES))
    samples = sample_examples(make_split(3 * SAMPLES), classes)
    assert [(sample["class"], sample["images"]) for sample in samples] == [(name, SAMPLES) for name in CLASSES]
    assert sample_examples(make_split(3 * SAMPLES + 9), classes) == samples
    few = sample_examples(make_split(4), classes)
    assert [sample["images"] for sample in few] == [2, 1, 1]
    [owls] = sample_examples(make_split(4), {2: "owl"})
    assert owls == few[2]


def test_splits_by_hand() -> None:
    examples = pl.DataFrame(
        {
            "split": ["train", "train", "train", "validation", "test", "test"],
            "label": [1, 0, 1, 0, 1, 0],
            "brightness": [10.0, 20.0, 30.0, 7.0, 0.0, 8.0],
            "contrast": [0.0, 0.0, 0.0, 3.0, 0.0, 0.0],
        }
    )
    train, validation, test = describe_splits(examples, 3)
    assert train == {
        "name": "train",
        "images": 3,
        "by_class": [1, 2, 0],
        "mean": 20.0,
        "deviation": pytest.approx((200 / 3) ** 0.5),
        "darkest": 10.0,
        "brightest": 30.0,
    }
    assert (validation["name"], validation["mean"], validation["deviation"]) == ("validation", 7.0, 3.0)
    assert (test["name"], test["mean"], test["deviation"]) == ("test", 4.0, 4.0)


def test_every_file_between_stages_is_listed_with_its_rules() -> None:
    spec = make_spec((1, 4, 5), CLASSES)
    rules = {entry["file"]: entry["rules"] for entry in describe_files("tiny", spec, 7)}
    assert rules["artifacts/normalized/{train,validation,test}.npy"] == ["uint8 [rows of the table, 1, 4, 5]"]
    assert rules["artifacts/raw/tiny: labels"] == ["label: UInt8, in_range(0, 2)"]
    assert "splits in the order train, validation, test, then problems" in rules[str(layout.EXAMPLES)]
    assert "one row for each of 7 images" in rules[str(layout.PREDICTIONS)]
    assert {str(layout.HISTORY), str(layout.PER_CLASS)} < set(rules)


def test_inputs_of_parity_are_named_in_words() -> None:
    rows = parity_rows({"batch_1": 1e-6, "batch_10000": 2e-6, "all_0": 0.0, "all_255": 1e-7, "noise": 3e-6})
    assert rows == [
        ("test images in batches of 1", 1e-6),
        ("test images in batches of 10,000", 2e-6),
        ("a black image", 0.0),
        ("a white image", 1e-7),
        ("images of random pixels", 3e-6),
    ]
