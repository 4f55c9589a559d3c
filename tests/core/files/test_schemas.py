"""Test each rule of each schema, broken once, when a table is written and when it is read."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pandera.polars import DataFrameSchema

from stages.core.data import schemas as data_schemas
from stages.core.files import schemas
from stages.core.files.errors import UserError
from stages.core.files.tables import read_table, write_table
from tests.conftest import make_examples

F32 = pl.Float32
TABLES: dict[str, tuple[DataFrameSchema, pl.DataFrame]] = {
    "raw_labels": (data_schemas.raw_labels(10), pl.DataFrame({"label": pl.Series([0, 1, 9], dtype=pl.UInt8)})),
    "examples": (
        data_schemas.examples(10),
        make_examples(
            {
                "id": [0, 1, 2, 3],
                "split": ["train", "train", "validation", "test"],
                "label": [0, 1, 2, 9],
                "file": ["train-images-idx3-ubyte"] * 3 + ["t10k-images-idx3-ubyte"],
                "sha256": ["0123456789abcdef" * 4] * 4,
                "brightness": pl.Series([0, 1, 2, 255], dtype=F32),
                "contrast": pl.Series([0.1, 1, 2, 3], dtype=F32),
            },
            10,
        ),
    ),
    "history": (
        schemas.history(),
        pl.DataFrame(
            {
                "epoch": [1, 2, 3],
                "train_loss": [2.5, 0.5, 0.0],
                "train_accuracy": [0.0, 0.5, 1.0],
                "validation_loss": [2.5, 0.5, 0.0],
                "validation_accuracy": [0.0, 0.5, 1.0],
                "lr": [0.1, 0.01, 0.0],
            }
        ),
    ),
    "predictions": (
        schemas.predictions(10, 3),
        pl.DataFrame({"index": [0, 1, 2], "label": [0, 1, 9], "prediction": [0, 9, 9], "confidence": [0.0, 0.5, 1.0]}),
    ),
    "label_errors": (
        schemas.label_errors(10),
        pl.DataFrame(
            {
                "id": [7, 0],
                "split": ["test", "validation"],
                "label": [0, 9],
                "suggested": [9, 0],
                "label_confidence": [0.0, 0.5],
                "suggested_confidence": [1.0, 0.5],
            }
        ),
    ),
    "per_class": (
        schemas.per_class(),
        pl.DataFrame(
            {"class": ["0", "1"], "images": [1, 2], "precision": [0.0, 1.0], "recall": [0.0, 1.0], "f1": [0.0, 1.0]}
        ),
    ),
}
COLUMNS = [(name, column) for name, (_, table) in TABLES.items() for column in table.columns]
NULLABLE = [
    (name, column) for name, (schema, _) in TABLES.items() for column, rules in schema.columns.items() if rules.nullable
]
NAN, INF = float("nan"), float("inf")


def assert_table_refused(table: pl.DataFrame, schema: DataFrameSchema, folder: Path, *lines: str) -> None:
    """Both when written, with nothing left, and when read."""
    path = folder / "table.parquet"
    with pytest.raises(UserError) as unwritten:
        write_table(table, path, schema)
    assert list(folder.iterdir()) == []
    table.write_parquet(path)
    with pytest.raises(UserError) as unread:
        read_table(path, schema)
    for message in (str(unwritten.value), str(unread.value)):
        assert message.startswith(f"{path} violates its schema:\n")
        assert all(line in message for line in lines), message


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("name", ["history", "predictions", "label_errors", "per_class"])
def test_table_round_trip(tmp_path: Path, name: str, suffix: str) -> None:
    schema, table = TABLES[name]
    path = tmp_path / "some" / f"table{suffix}"
    write_table(table, path, schema)
    assert read_table(path, schema).equals(table)
    assert list(path.parent.iterdir()) == [path]


def test_examples_round_trip(tmp_path: Path) -> None:
    schema, table = TABLES["examples"]
    write_table(table, tmp_path / "examples.parquet", schema)
    assert read_table(tmp_path / "examples.parquet", schema).equals(table)


@pytest.mark.parametrize(
    ("name", "column", "values", "rule"),
    [
        ("raw_labels", "label", [0, 10, 255], "in_range(0, 9) (2 failing; row 1: 10, row 2: 255)"),
        ("examples", "id", [0, 1, 1, 3], "field_uniqueness (2 failing; row 1: 1, row 2: 1)"),
        (
            "examples",
            "split",
            ["train", "dev"] * 2,
            "isin(['train', 'validation', 'test']) (2 failing; row 1: dev,",
        ),
        ("examples", "label", [0, -1, 10, 9], "in_range(0, 9) (2 failing; row 1: -1, row 2: 10)"),
        ("examples", "brightness", [0, -1, 256, 9], "in_range(0, 255) (2 failing; row 1: -1.0, row 2: 256.0)"),
        ("examples", "contrast", [1, 0, 129, -1], "in_range(0, 128) (2 failing; row 2: 129.0, row 3: -1.0)"),
        ("examples", "sha256", ["a" * 64, "a" * 63, "a" * 65, "A" * 64], "str_matches('^[0-9a-f]{64}$') (3 failing"),
        ("history", "epoch", [0, 1, 2], "epochs 1, 2, 3, ... in order (3 failing; row 0: 0, row 1: 1, row 2: 2)"),
        ("history", "epoch", [1, 3, 2], "epochs 1, 2, 3, ... in order (2 failing; row 1: 3, row 2: 2)"),
        ("history", "train_loss", [NAN, 1, -1], "finite and not negative (2 failing; row 0: NaN, row 2: -1.0)"),
        ("history", "validation_loss", [0, INF, 1], "finite and not negative (1 failing; row 1: inf)"),
        ("history", "train_accuracy", [0, 1.1, -0.1], "in_range(0, 1) (2 failing; row 1: 1.1, row 2: -0.1)"),
        ("history", "validation_accuracy", [NAN, 0, 2], "in_range(0, 1) (2 failing; row 0: NaN, row 2: 2.0)"),
        ("history", "lr", [0, -1, 1], "finite and not negative (1 failing; row 1: -1.0)"),
        ("predictions", "index", [0, 2, 1], "indices 0, 1, 2, ... in order (2 failing; row 1: 2, row 2: 1)"),
        ("predictions", "label", [0, 10, -1], "in_range(0, 9) (2 failing; row 1: 10, row 2: -1)"),
        ("predictions", "prediction", [0, 10, -1], "in_range(0, 9) (2 failing; row 1: 10, row 2: -1)"),
        ("predictions", "confidence", [NAN, 1.1, -0.1], "in_range(0, 1) (3 failing; row 0: NaN, row 1: 1.1, row 2: -"),
        ("label_errors", "id", [1, 1], "field_uniqueness (2 failing; row 0: 1, row 1: 1)"),
        ("label_errors", "id", [-1, 1], "greater_than_or_equal_to(0) (1 failing; row 0: -1)"),
        ("label_errors", "split", ["train", "test"], "isin(['validation', 'test']) (1 failing; row 0: train)"),
        ("label_errors", "label", [10, 9], "in_range(0, 9) (1 failing; row 0: 10)"),
        ("label_errors", "suggested", [9, -1], "in_range(0, 9) (1 failing; row 1: -1)"),
        ("label_errors", "label_confidence", [NAN, 0.5], "in_range(0, 1) (1 failing; row 0: NaN)"),
        ("label_errors", "suggested_confidence", [1.1, 0.5], "in_range(0, 1) (1 failing; row 0: 1.1)"),
        ("per_class", "class", ["0", "0"], "field_uniqueness (2 failing; row 0: 0, row 1: 0)"),
        ("per_class", "images", [1, 0], "greater_than(0) (1 failing; row 1: 0)"),
        ("per_class", "precision", [1.1, -0.1], "in_range(0, 1) (2 failing; row 0: 1.1, row 1: -0.1)"),
        ("per_class", "recall", [1.1, -0.1], "in_range(0, 1) (2 failing; row 0: 1.1, row 1: -0.1)"),
        ("per_class", "f1", [NAN, 2.0], "in_range(0, 1) (2 failing; row 0: NaN, row 1: 2.0)"),
    ],
)
def test_table_value(tmp_path: Path, name: str, column: str, values: list[Any], rule: str) -> None:
    schema, table = TABLES[name]
    broken = table.with_columns(pl.Series(column, values, dtype=table.schema[column], strict=False))
    assert_table_refused(broken, schema, tmp_path, f"  column '{column}': {rule}")


@pytest.mark.parametrize(("name", "column"), COLUMNS)
def test_table_column_missing(tmp_path: Path, name: str, column: str) -> None:
    schema, table = TABLES[name]
    assert_table_refused(table.drop(column), schema, tmp_path, f"  table: column_in_dataframe (1 failing; {column})")


@pytest.mark.parametrize(("name", "column"), COLUMNS)
def test_table_type(tmp_path: Path, name: str, column: str) -> None:
    schema, table = TABLES[name]
    expected = table.schema[column]
    other = pl.Binary if expected == pl.String else pl.String
    broken = table.with_columns(pl.col(column).cast(other))
    assert_table_refused(broken, schema, tmp_path, f"  column '{column}': dtype('{expected}') (1 failing; {other()})")


@pytest.mark.parametrize(("name", "column"), [each for each in COLUMNS if each not in NULLABLE])
def test_table_null(tmp_path: Path, name: str, column: str) -> None:
    schema, table = TABLES[name]
    broken = table.with_columns(pl.when(pl.int_range(pl.len()) != 1).then(pl.col(column)).alias(column))
    assert_table_refused(broken, schema, tmp_path, f"  column '{column}': not_nullable (1 failing; row 1: None)")


@pytest.mark.parametrize("name", TABLES)
def test_table_unknown_column(tmp_path: Path, name: str) -> None:
    schema, table = TABLES[name]
    broken = table.with_columns(surplus=1)
    assert_table_refused(broken, schema, tmp_path, "  table: column_in_schema (1 failing; surplus)")


@pytest.mark.parametrize(
    ("order", "rows"),
    [
        (["train", "validation", "train", "test"], "(1 failing; row 2: "),
        (["train", "test", "validation", "test"], "(1 failing; row 2: "),
        (["test", "validation", "train", "train"], "(2 failing; row 1: "),
    ],
)
def test_examples_are_in_the_order_of_the_splits(tmp_path: Path, order: list[str], rows: str) -> None:
    schema, table = TABLES["examples"]
    broken = table.with_columns(split=pl.Series(order))
    line = f"  table: splits in the order train, validation, test, then problems {rows}"
    assert_table_refused(broken, schema, tmp_path, line)


@pytest.mark.parametrize(("split", "problem"), [(None, None), ("test", "is empty")])
def test_an_example_has_either_a_split_or_a_problem(tmp_path: Path, split: str | None, problem: str | None) -> None:
    schema, table = TABLES["examples"]
    last = pl.int_range(pl.len()) == 3
    broken = table.with_columns(
        split=pl.when(last).then(pl.lit(split, pl.String)).otherwise("split"),
        problem=pl.when(last).then(pl.lit(problem, pl.String)).otherwise("problem"),
    )
    assert_table_refused(
        broken, schema, tmp_path, "  table: an example has either a split or a problem (1 failing; row 3: "
    )


@pytest.mark.parametrize("rows", [0, 2, 4])
def test_predictions_are_of_every_image(tmp_path: Path, rows: int) -> None:
    schema, _ = TABLES["predictions"]
    table = pl.DataFrame(
        {"index": range(rows), "label": [0] * rows, "prediction": [0] * rows, "confidence": [1.0] * rows},
        schema={"index": pl.Int64, "label": pl.Int64, "prediction": pl.Int64, "confidence": pl.Float64},
    )
    assert_table_refused(table, schema, tmp_path, "  table: one row for each of 3 images")
