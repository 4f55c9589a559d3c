"""Test the findings about a data set against cases worked out by hand."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from stages.core.data.splits import Split
from stages.core.files.errors import UserError
from stages.core.files.tables import read_table, write_table
from stages.core.reporting.audit import (
    FAR,
    MEANINGS,
    NAMED,
    SHOWN,
    audit,
    count_sizes,
    defuse,
    describe_order,
    measure_distances,
    schema,
    show_findings,
)
from tests.conftest import make_examples

CLASSES = ["cat", "dog"]
NO_ERRORS = pl.DataFrame(
    schema={"id": pl.Int64, "suggested": pl.Int64, "label_confidence": pl.Float64, "suggested_confidence": pl.Float64}
)


def make(count: int, **columns: Any) -> pl.DataFrame:
    """Return training examples that nothing is wrong with, except for these columns."""
    usual = {
        "id": range(count),
        "split": ["train"] * count,
        "label": [0] * count,
        "file": [f"{index}.png" for index in range(count)],
        "input_sha256": [f"{index:064x}" for index in range(count)],
        "width": [40] * count,
        "height": [30] * count,
        "mode": ["RGB"] * count,
        "brightness": np.linspace(100, 120, count),
        "contrast": np.linspace(30, 40, count),
    }
    return make_examples({**usual, **columns}, len(CLASSES))


def rows(findings: pl.DataFrame, finding: str) -> list[tuple[Any, ...]]:
    return findings.filter(finding=finding).select("rank", "file", "detail").rows()


def test_nothing_is_found_in_clean_data() -> None:
    findings = audit(make(30), NO_ERRORS, CLASSES)
    assert len(findings) == 0
    assert findings.columns == [*schema().columns, "id", "other"]


def test_problems_are_rows() -> None:
    examples = make(3, split=["train", None, None], problem=[None, "is blank", "cannot be read"])
    findings = audit(examples, NO_ERRORS, CLASSES)
    assert rows(findings, "problem") == [(1, "1.png", "is blank"), (2, "2.png", "cannot be read")]
    assert findings["split"].to_list() == [None, None]


def test_copies_share_a_rank_and_those_across_splits_come_first() -> None:
    a, b, c = ("a" * 64, "b" * 64, "c" * 64)
    examples = make(
        6, input_sha256=[a, a, b, c, b, a], split=["train"] * 4 + ["test"] + ["train"], label=[0, 0, 0, 0, 1, 0]
    )
    findings = audit(examples, NO_ERRORS, CLASSES)
    assert rows(findings, "exact duplicate") == [
        (1, "2.png", "same content as 4.png (test, labelled dog)"),
        (1, "4.png", "same content as 2.png (train, labelled cat)"),
        (2, "0.png", "same content as 1.png (train, labelled cat), 5.png (train, labelled cat)"),
        (2, "1.png", "same content as 0.png (train, labelled cat), 5.png (train, labelled cat)"),
        (2, "5.png", "same content as 0.png (train, labelled cat), 1.png (train, labelled cat)"),
    ]
    assert rows(findings, "conflicting label") == rows(findings, "exact duplicate")[:2]


def test_of_many_copies_only_the_first_are_named() -> None:
    findings = audit(make(2000, input_sha256=["a" * 64] * 2000), NO_ERRORS, CLASSES)
    details = findings.filter(finding="exact duplicate")["detail"]
    assert len(details) == 2000
    assert all(detail.count("labelled") == NAMED for detail in details)
    assert details[0].endswith("3.png (train, labelled cat) and 1,996 more")
    assert details[1999].startswith("same content as 0.png ")


def test_near_duplicates_with_different_labels_come_first_and_copies_are_none() -> None:
    examples = make(
        4,
        split=["train", "test", "test", "test"],
        label=[1, 1, 0, 1],
        alike=[None, 0, 0, 0],
        input_sha256=["a" * 64, "b" * 64, "c" * 64, "a" * 64],
    )
    findings = audit(examples, NO_ERRORS, CLASSES)
    assert rows(findings, "near duplicate") == [
        (1, "2.png", "looks the same as 0.png (train, labelled dog)"),
        (2, "1.png", "looks the same as 0.png (train, labelled dog)"),
    ]


def test_likely_wrong_labels_keep_their_order() -> None:
    errors = pl.DataFrame({"id": [2, 0], "suggested": [1, 1], "label_confidence": [0.001, 0.2]})
    findings = audit(make(3), errors.with_columns(suggested_confidence=0.75), CLASSES)
    assert rows(findings, "likely mislabelled") == [
        (1, "2.png", "the model gives dog a probability of 75.00% and the label 0.10%"),
        (2, "0.png", "the model gives dog a probability of 75.00% and the label 20.00%"),
    ]
    assert findings["suggested"].to_list() == ["dog", "dog"]


def test_outliers_are_beyond_the_outer_fences() -> None:
    """The quartiles are 3 and 7, so the outer fences are -9 and 19."""
    distances = measure_distances(np.array([3.0] * 4 + [7.0] * 4 + [-9, 19, -9.1, 19.1]), 1)
    assert (distances > FAR).tolist() == [False] * 10 + [True] * 2
    assert distances[8:10].tolist() == [FAR, FAR]


def test_outliers_say_what_is_unusual_and_what_is_usual() -> None:
    brightness = [*np.linspace(100, 120, 18), 9.0, 110.0]
    findings = audit(make(20, brightness=brightness, width=[40] * 19 + [400]), NO_ERRORS, CLASSES)
    assert rows(findings, "outlier") == [
        (1, "19.png", "400x30: area 12,000, usually 1,200; width/height 13.33, usually 1.33"),
        (2, "18.png", "40x30: brightness 9.0, usually 100.0 to 120.0"),
    ]


def test_upright_pictures_among_wide_ones_are_no_outliers() -> None:
    assert len(audit(make(20, width=[40] * 18 + [30] * 2, height=[30] * 18 + [40] * 2), NO_ERRORS, CLASSES)) == 0


def test_examples_of_an_array_have_a_row() -> None:
    files = ["train-images"] * 3 + ["t10k-images"] * 2
    checksums = ["a" * 64, "b" * 64, "c" * 64, "d" * 64, "c" * 64]
    splits = ["train", "validation", "train", "test", "test"]
    examples = make(5, file=files, input_sha256=checksums, split=splits)
    findings = audit(examples, NO_ERRORS, CLASSES)
    assert findings.select("file", "row", "detail").rows() == [
        ("train-images", 2, "same content as t10k-images row 1 (test, labelled cat)"),
        ("t10k-images", 1, "same content as train-images row 2 (train, labelled cat)"),
    ]


def test_no_text_runs_as_a_formula(tmp_path: Any) -> None:
    names = ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\tx", "＝1", 'ä,"b"\n.png', "a=b"]  # noqa: RUF001
    problems = ["is blank"] * 7 + [None]
    examples = make(8, split=[None] * 7 + ["train"], problem=problems, file=names, label=[1] * 8)
    findings = audit(examples, NO_ERRORS, ["cat", "=dog"])
    path = tmp_path / "audit.csv"
    with pytest.raises(UserError, match="column 'file': not a formula"):
        write_table(findings.select(*schema().columns), path, schema())
    write_table(defuse(findings), path, schema(), for_people=True)
    assert path.read_bytes().startswith("\ufefffinding,rank,file,".encode())
    table = read_table(path, schema())
    assert table.equals(defuse(findings))
    assert table["file"].to_list() == [*(f"./{name}" for name in names[:6]), names[6]]
    assert set(table["label"]) == {"'=dog"}


def test_the_page_shows_the_first_of_each_kind_and_a_group_once() -> None:
    count = SHOWN + 10
    checksums = ["f" * 64] * 3 + [f"{index:064x}" for index in range(count - 3)]
    examples = make(count + 1, split=["train"] * count + [None], problem=[None] * count + ["is blank"],
                    input_sha256=[*checksums, None])  # fmt: skip
    errors = pl.DataFrame({"id": range(count), "suggested": [1] * count, "label_confidence": [0.1] * count})
    findings = audit(examples, errors.with_columns(suggested_confidence=0.9), CLASSES)
    train = Split(np.random.default_rng(1).integers(256, size=(count, 3, 4, 5), dtype=np.uint8), np.zeros(count, int))
    shown = {kind["finding"]: kind for kind in show_findings(findings, examples, {"train": train})}
    assert [*shown] == [*MEANINGS]
    assert (shown["exact duplicate"]["count"], len(shown["exact duplicate"]["rows"])) == (3, 1)
    assert (shown["likely mislabelled"]["count"], len(shown["likely mislabelled"]["rows"])) == (count, SHOWN)
    assert shown["problem"]["rows"][0]["picture"] is None
    assert len({row["picture"] for row in shown["likely mislabelled"]["rows"]}) == SHOWN
    assert (shown["outlier"]["count"], shown["outlier"]["rows"]) == (0, [])


def test_sizes_are_counted_and_the_order_of_classes_is_stated() -> None:
    examples = make(4, width=[40, 40, 50, None], mode=["L", "L", "RGB", None])
    assert count_sizes(examples) == [
        {"mode": "L", "width": 40, "height": 30, "images": 2},
        {"mode": "RGB", "width": 50, "height": 30, "images": 1},
    ]
    assert "natural order" in describe_order(["class 9", "class 10"])
    assert "dataset.yaml lists them" in describe_order(["class 10", "class 9"])
