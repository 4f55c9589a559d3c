"""Each rule of each schema, broken once, when written and when read."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from pandera.polars import DataFrameSchema
from pandera.tensordict import TensorDictSchema
from stages.core.datasets import normalize_pixels  # FIXME
from stages.core.tensors import read_tensors, validate_tensors, write_tensors  # FIXME
from tensordict import TensorDict

from stages.core import schemas
from stages.core.files.errors import UserError
from stages.core.files.tables import read_table, validate, write_table

F32 = pl.Float32
TABLES: dict[str, tuple[DataFrameSchema, pl.DataFrame]] = {
    "summary": (
        schemas.summary(10),
        pl.DataFrame(
            {
                "id": [0, 1, 2, 3],
                "split": ["train", "train", "validation", "test"],
                "label": [0, 1, 2, 9],
                "pixel_mean": pl.Series([0, 1, 2, 255], dtype=F32),
                "pixel_std": pl.Series([0.1, 1, 2, 3], dtype=F32),
                "sha256": ["0123456789abcdef" * 4] * 4,
            }
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
    "per_class": (
        schemas.per_class(),
        pl.DataFrame(
            {"class": ["0", "1"], "images": [1, 2], "precision": [0.0, 1.0], "recall": [0.0, 1.0], "f1": [0.0, 1.0]}
        ),
    ),
}
COLUMNS = [(name, column) for name, (_, table) in TABLES.items() for column in table.columns]
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
@pytest.mark.parametrize("name", ["history", "predictions", "per_class"])
def test_table_round_trip(tmp_path: Path, name: str, suffix: str) -> None:
    schema, table = TABLES[name]
    path = tmp_path / "some" / f"table{suffix}"
    write_table(table, path, schema)
    assert read_table(path, schema).equals(table)
    assert list(path.parent.iterdir()) == [path]


def test_summary_round_trip(tmp_path: Path) -> None:
    schema, table = TABLES["summary"]
    write_table(table, tmp_path / "summary.parquet", schema)
    assert read_table(tmp_path / "summary.parquet", schema).equals(table)


@pytest.mark.parametrize(
    ("name", "column", "values", "rule"),
    [
        ("summary", "id", [0, 1, 1, 3], "field_uniqueness (2 failing; row 1: 1, row 2: 1)"),
        ("summary", "split", ["train", "dev"] * 2, "isin(['train', 'validation', 'test']) (2 failing; row 1: dev, row"),
        ("summary", "label", [0, -1, 10, 9], "in_range(0, 9) (2 failing; row 1: -1, row 2: 10)"),
        ("summary", "pixel_mean", [0, -1, 256, 9], "in_range(0, 255) (2 failing; row 1: -1.0, row 2: 256.0)"),
        ("summary", "pixel_std", [1, 0, 1, -1], "no constant image (2 failing; row 1: 0.0, row 3: -1.0)"),
        ("summary", "pixel_std", [1, NAN, 1, 1], "not_nullable (1 failing; row 1: NaN)"),
        ("summary", "sha256", ["a" * 64, "a" * 63, "a" * 65, "A" * 64], "str_matches('^[0-9a-f]{64}$') (3 failing"),
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
    other = pl.String if expected.is_numeric() else pl.Binary
    broken = table.with_columns(pl.col(column).cast(other))
    assert_table_refused(broken, schema, tmp_path, f"  column '{column}': dtype('{expected}') (1 failing; {other()})")


@pytest.mark.parametrize(("name", "column"), COLUMNS)
def test_table_null(tmp_path: Path, name: str, column: str) -> None:
    schema, table = TABLES[name]
    broken = table.with_columns(pl.when(pl.int_range(pl.len()) != 1).then(pl.col(column)).alias(column))
    assert_table_refused(broken, schema, tmp_path, f"  column '{column}': not_nullable (1 failing; row 1: None)")


@pytest.mark.parametrize("name", TABLES)
def test_table_unknown_column(tmp_path: Path, name: str) -> None:
    schema, table = TABLES[name]
    broken = table.with_columns(surplus=1)
    assert_table_refused(broken, schema, tmp_path, "  table: column_in_schema (1 failing; surplus)")


def test_table_rules_across_columns(tmp_path: Path) -> None:
    schema, table = TABLES["summary"]
    broken = table.with_columns(id=pl.Series([0, 1, 2, 2]))
    assert_table_refused(broken, schema, tmp_path, "  table: no id in two splits (2 failing; row 2: ")


@pytest.mark.parametrize("rows", [0, 2, 4])
def test_predictions_are_of_every_image(tmp_path: Path, rows: int) -> None:
    schema, _ = TABLES["predictions"]
    table = pl.DataFrame(
        {"index": range(rows), "label": [0] * rows, "prediction": [0] * rows, "confidence": [1.0] * rows},
        schema={"index": pl.Int64, "label": pl.Int64, "prediction": pl.Int64, "confidence": pl.Float64},
    )
    assert_table_refused(table, schema, tmp_path, "  table: one row for each of 3 images")


def test_only_the_first_failing_rows_are_named(tmp_path: Path) -> None:
    table = pl.DataFrame({"class": [f"{i}" for i in range(50)], "images": [1] * 20 + [0] * 30})
    table = table.with_columns(precision=1.0, recall=1.0, f1=1.0)
    with pytest.raises(UserError) as refused:
        validate(table, schemas.per_class(), tmp_path / "per_class.csv")
    assert str(refused.value).split("\n")[1:] == [
        "  column 'images': greater_than(0) (30 failing; row 20: 0, row 21: 0, row 22: 0, row 23: 0, row 24: 0)"
    ]


def test_every_violation_is_told_at_once_each_on_a_line(tmp_path: Path) -> None:
    schema, table = TABLES["history"]
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
    schema, table = TABLES["history"]
    path = tmp_path / f"history{suffix}"
    write_table(table, path, schema)
    path.write_bytes(path.read_bytes()[kept])
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_table(path, schema)


def test_table_damaged_inside(tmp_path: Path) -> None:
    schema, table = TABLES["history"]
    path = tmp_path / "history.parquet"
    write_table(table, path, schema)
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(50) + content[150:])
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_table(path, schema)


def test_csv_that_is_no_text(tmp_path: Path) -> None:
    schema, table = TABLES["history"]
    path = tmp_path / "history.csv"
    write_table(table, path, schema)
    path.write_bytes(path.read_bytes().replace(b"2.5", b"\xff\xfe"))
    with pytest.raises(UserError, match=re.escape(f"{path} is damaged: ")):
        read_table(path, schema)


RAW = schemas.raw(10)
NORMALIZED = schemas.normalized(10, mean=0.5, std=0.5)


def raw(**changes: torch.Tensor) -> TensorDict:
    columns = {"image": torch.full((8, 1, 4, 4), 9, dtype=torch.uint8), "label": torch.arange(8, dtype=torch.uint8)}
    return TensorDict({**columns, **changes}, batch_size=[8])


def normal(**changes: torch.Tensor) -> TensorDict:
    columns = {"image": torch.full((8, 1, 4, 4), 0.5), "label": torch.arange(8), "id": torch.arange(8) + 100}
    return TensorDict({**columns, **changes}, batch_size=[8])


def pixel(value: float, *rows: int) -> torch.Tensor:
    """Good images but for one pixel of those in `rows`."""
    images = torch.zeros(8, 1, 4, 4)
    images[list(rows), 0, 3, 1] = value
    return images


def assert_tensors_refused(data: TensorDict, schema: TensorDictSchema, folder: Path, line: str) -> None:
    """Both when written, with nothing left, and when read."""
    path = folder / "tensors"
    with pytest.raises(UserError) as unwritten:
        write_tensors(data, path, schema)
    assert list(folder.iterdir()) == []
    data.memmap(str(path))
    with pytest.raises(UserError) as unread:
        read_tensors(path, schema)
    for message in (str(unwritten.value), str(unread.value)):
        assert message.startswith(f"{path} violates its schema:\n")
        assert line in message


@pytest.mark.parametrize(("data", "schema"), [(raw(), RAW), (normal(), NORMALIZED)], ids=["raw", "normalized"])
def test_tensors_round_trip(tmp_path: Path, data: TensorDict, schema: TensorDictSchema) -> None:
    path = tmp_path / "some" / "tensors"
    write_tensors(data, path, schema)
    read = read_tensors(path, schema)
    assert set(read.keys()) == set(data.keys())
    assert all(torch.equal(read[name], data[name]) for name in data.keys())  # noqa: SIM118  # iterating gives rows
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"image": torch.zeros(8, 1, 4, 4)}, "'image': expected dtype torch.uint8, got torch.float32"),
        ({"image": torch.zeros(8, 3, 4, 4, dtype=torch.uint8)}, "'image': expected shape[1]=1, got shape[1]=3"),
        ({"image": torch.zeros(8, 4, 4, dtype=torch.uint8)}, "'image': expected shape (None, 1, None, None), got"),
        ({"label": torch.arange(8)}, "'label': expected dtype torch.uint8, got torch.int64"),
        ({"label": torch.zeros(8, 1, dtype=torch.uint8)}, "'label': expected shape (None,), got (8, 1)"),
        (
            {"label": torch.tensor([0, 10, 9, 1, 2, 255, 3, 4], dtype=torch.uint8)},
            "column 'label': in 0..9 (failing rows 1, 5, found 10, 255)",
        ),
        (
            {"label": torch.full((8,), 77, dtype=torch.uint8)},
            "column 'label': in 0..9 (failing rows 0, 1, 2, 3, 4, found 77, 77, 77, 77, 77)",
        ),
    ],
)
def test_raw_tensors(tmp_path: Path, changes: dict[str, torch.Tensor], line: str) -> None:
    assert_tensors_refused(raw(**changes), RAW, tmp_path, line)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"image": torch.zeros(8, 1, 4, 4).double()}, "'image': expected dtype torch.float32, got torch.float64"),
        ({"image": torch.zeros(8, 2, 4, 4)}, "'image': expected shape[1]=1, got shape[1]=2"),
        ({"image": torch.zeros(8, 16)}, "'image': expected shape (None, 1, None, None), got (8, 16)"),
        ({"image": pixel(NAN, 2, 6)}, "column 'image': all pixels finite (failing rows 2, 6)"),
        ({"image": pixel(-INF, 7)}, "column 'image': all pixels finite (failing rows 7)"),
        ({"image": pixel(1.001, 3)}, "column 'image': all pixels in -1..1 (failing rows 3)"),
        ({"image": pixel(-1.001, 0, 4)}, "column 'image': all pixels in -1..1 (failing rows 0, 4)"),
        ({"image": pixel(9, 1, 2, 3, 4, 5, 6)}, "column 'image': all pixels in -1..1 (failing rows 1, 2, 3, 4, 5)"),
        ({"label": torch.arange(8).int()}, "'label': expected dtype torch.int64, got torch.int32"),
        ({"label": torch.zeros(8, 1).long()}, "'label': expected shape (None,), got (8, 1)"),
        (
            {"label": torch.tensor([0, 1, 2, -1, 4, 5, 10, 7])},
            "column 'label': in 0..9 (failing rows 3, 6, found -1, 10)",
        ),
        ({"id": torch.arange(8).int()}, "'id': expected dtype torch.int64, got torch.int32"),
        ({"id": torch.zeros(8, 1).long()}, "'id': expected shape (None,), got (8, 1)"),
        ({"id": torch.tensor([5, 6, 7, 6, 8, 9, 5, 10])}, "column 'id': unique (failing rows "),
    ],
)
def test_normalized_tensors(tmp_path: Path, changes: dict[str, torch.Tensor], line: str) -> None:
    assert_tensors_refused(normal(**changes), NORMALIZED, tmp_path, line)


@pytest.mark.parametrize("column", ["image", "label", "id"])
def test_tensor_missing(tmp_path: Path, column: str) -> None:
    assert_tensors_refused(normal().exclude(column), NORMALIZED, tmp_path, f"Missing key '{column}'")
    (tmp_path / "raw").mkdir()
    if column != "id":
        assert_tensors_refused(raw().exclude(column), RAW, tmp_path / "raw", f"Missing key '{column}'")


@pytest.mark.parametrize(("data", "schema"), [(raw(), RAW), (normal(), NORMALIZED)], ids=["raw", "normalized"])
def test_tensors_without_batch_size(tmp_path: Path, data: TensorDict, schema: TensorDictSchema) -> None:
    assert_tensors_refused(
        TensorDict(data.to_dict(), batch_size=[]), schema, tmp_path, "Expected batch_size (None,), got torch.Size([])"
    )


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.1307, 0.3081), (1.0, 0.001), (0.5, 100.0)])
def test_every_normalized_byte_is_in_range(tmp_path: Path, mean: float, std: float) -> None:
    images = normalize_pixels(torch.arange(256, dtype=torch.uint8).reshape(8, 1, 4, 8), mean, std)
    validate_tensors(normal(image=images), schemas.normalized(10, mean, std), tmp_path)


def test_tensors_damaged(tmp_path: Path) -> None:
    path = tmp_path / "tensors"
    write_tensors(normal(), path, NORMALIZED)
    image = path / "image.memmap"
    image.write_bytes(b"\xff" * image.stat().st_size)
    with pytest.raises(UserError) as refused:
        read_tensors(path, NORMALIZED)
    assert f"{path} violates its schema:\n  column 'image': all pixels finite" in str(refused.value)


@pytest.mark.parametrize("column", ["image", "label", "id"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_tensors_truncated(tmp_path: Path, column: str, share: float) -> None:
    path = tmp_path / "tensors"
    write_tensors(normal(), path, NORMALIZED)
    file = path / f"{column}.memmap"
    content = file.read_bytes()
    half = content[: int(share * len(content))]
    file.write_bytes(half)
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_tensors(path, NORMALIZED)
    assert file.read_bytes() == half, "reading has changed the file"


@pytest.mark.parametrize("column", ["image", "label", "id"])
def test_tensors_with_a_file_lost(tmp_path: Path, column: str) -> None:
    path = tmp_path / "tensors"
    write_tensors(normal(), path, NORMALIZED)
    (path / f"{column}.memmap").unlink()
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_tensors(path, NORMALIZED)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"shape": [8]}', "\xff"])
def test_tensors_with_damaged_metadata(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tensors"
    write_tensors(normal(), path, NORMALIZED)
    (path / "meta.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(f"{path} is damaged: ")):
        read_tensors(path, NORMALIZED)


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tensors"):
        read_tensors(tmp_path / "tensors", NORMALIZED)
    with pytest.raises(FileNotFoundError, match=re.escape("table.parquet")):
        read_table(tmp_path / "table.parquet", TABLES["history"][0])
