"""Test what is said of a table that breaks its schema, and that damaged tables and JSON files are reported by name."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from stages.core.files import schemas
from stages.core.files.errors import UserError
from stages.core.files.tables import read_json, read_table, validate, write_json, write_table

HISTORY = pl.DataFrame(
    {
        "epoch": [1, 2, 3],
        "train_loss": [2.5, 0.5, 0.0],
        "train_accuracy": [0.0, 0.5, 1.0],
        "validation_loss": [2.5, 0.5, 0.0],
        "validation_accuracy": [0.0, 0.5, 1.0],
        "lr": [0.1, 0.01, 0.0],
    }
)


def test_only_the_first_failing_rows_are_named(tmp_path: Path) -> None:
    table = pl.DataFrame({"class": [f"{i}" for i in range(50)], "images": [1] * 20 + [0] * 30})
    table = table.with_columns(precision=1.0, recall=1.0, f1=1.0)
    with pytest.raises(UserError) as refused:
        validate(table, schemas.per_class(), tmp_path / "per_class.csv")
    assert str(refused.value).split("\n")[1:] == [
        "  column 'images': greater_than(0) (30 failing; row 20: 0, row 21: 0, row 22: 0, row 23: 0, row 24: 0)"
    ]


def test_every_violation_is_reported_at_once_each_on_a_line(tmp_path: Path) -> None:
    schema, table = schemas.history(), HISTORY
    broken = table.with_columns(epoch=pl.Series([1, 2, 4]), lr=pl.Series([1.0, -1.0, 0.0])).drop("train_loss")
    broken = broken.with_columns(pl.col("validation_loss").cast(pl.String))
    with pytest.raises(UserError) as refused:
        validate(broken, schema, tmp_path / "history.csv")
    message = str(refused.value)
    for line in (
        "  table: column_in_dataframe (1 failing; train_loss)",
        "  column 'validation_loss': dtype('Float64') (1 failing; String)",
        "  column 'epoch': epochs 1, 2, 3, ... in order (1 failing; row 2: 4)",
        "  column 'lr': finite and not negative (1 failing; row 1: -1.0)",
    ):
        assert line in message
    assert all(re.match(r"  (column '\w+'|table): ", line) for line in message.split("\n")[1:]), message


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    "kept",
    [slice(0), slice(-20), slice(20), slice(20, None)],
    ids=["nothing", "all but the end", "only the start", "all but the start"],
)
def test_damaged_table(tmp_path: Path, suffix: str, kept: slice) -> None:
    schema, table = schemas.history(), HISTORY
    path = tmp_path / f"history{suffix}"
    write_table(table, path, schema)
    path.write_bytes(path.read_bytes()[kept])
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_table(path, schema)


def test_table_damaged_inside(tmp_path: Path) -> None:
    schema, table = schemas.history(), HISTORY
    path = tmp_path / "history.parquet"
    write_table(table, path, schema)
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(50) + content[150:])
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_table(path, schema)


def test_csv_that_is_not_text(tmp_path: Path) -> None:
    schema, table = schemas.history(), HISTORY
    path = tmp_path / "history.csv"
    write_table(table, path, schema)
    path.write_bytes(path.read_bytes().replace(b"2.5", b"\xff\xfe"))
    with pytest.raises(UserError, match=re.escape(f"{path} is damaged: ")):
        read_table(path, schema)


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "values.json"
    write_json({"accuracy": 0.5, "images": 7}, path)
    assert json.loads(path.read_text()) == {"accuracy": 0.5, "images": 7}
    assert path.read_text().endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_is_standard(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"accuracy": value}, tmp_path / "values.json")
    assert list(tmp_path.iterdir()) == []


def test_json_round_trip(tmp_path: Path) -> None:
    values = {"accuracy": 0.5, "images": 7, "made_from": {"data": "\N{SNOWMAN}"}}
    write_json(values, tmp_path / "values.json")
    assert read_json(tmp_path / "values.json") == values


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"7", b"null", b'{"a": \xff}', b"<<<<<<< HEAD\n{}\n"])
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "values.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} is damaged: "):
        read_json(path)


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("table.parquet")):
        read_table(tmp_path / "table.parquet", schemas.history())
    with pytest.raises(FileNotFoundError, match=re.escape("values.json")):
        read_json(tmp_path / "values.json")
