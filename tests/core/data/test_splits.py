"""Test that splits are checked, stored and read, and that a damaged or inconsistent data set is reported by name."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import DTypeLike, NDArray

from stages.core.data import schemas, splits
from stages.core.data.config import ClassShare
from stages.core.data.raw import Joined
from stages.core.data.splits import check_classes, count_examples, read_dataset, read_spec
from stages.core.examples.spec import Spec
from stages.core.files.arrays import write_array
from stages.core.files.errors import UserError
from stages.core.files.layout import EXAMPLES, NORMALIZED, SPEC, split_array
from stages.core.files.tables import write_table
from tests.conftest import make_examples, make_spec

SIZES = {"train": 6, "validation": 3, "test": 4}
SHAPE = (1, 5, 4)
A_SPEC = make_spec(SHAPE, ["a", "b", "c"])


def checksums(count: int) -> list[str]:
    """Return checksums of as many different examples."""
    return [hashlib.sha256(str(index).encode()).hexdigest() for index in range(count)]


def table(train: str, validation: str, test: str) -> pl.DataFrame:
    """Return the columns that matter of a table whose labels are these digits."""
    digits = {"train": train, "validation": validation, "test": test}
    rows = [(split, int(digit)) for split, of_split in digits.items() for digit in of_split]
    return pl.DataFrame(rows, schema={"split": pl.String, "label": pl.Int64}, orient="row")


def refused_classes(examples: pl.DataFrame, low: float, high: float) -> list[str]:
    with pytest.raises(UserError) as refusal:
        check_classes(examples, ["cat", "dog"], ClassShare(min=low, max=high), Path("raw"))
    return str(refusal.value).split("\n")


def test_a_split_without_a_class_is_reported() -> None:
    assert refused_classes(table("0001", "000", "1"), 0.0, 1.0) == [
        "raw: each split needs an example of each class, found:",
        "  validation: no example of class 'dog'",
        "  test: no example of class 'cat'",
    ]


def test_a_share_out_of_bounds_is_reported_with_bounds_that_would_do() -> None:
    uneven = table("0001", "01", "01111111")
    assert refused_classes(uneven, 0.2, 0.8) == [
        "class_share: shares must be from 0.2 to 0.8, raw has:",
        "  test: class 'cat' has 0.1250",
        "  test: class 'dog' has 0.8750",
        "  `class_share: {min: 0.125, max: 0.875}` in its dataset.yaml would allow it",
    ]
    check_classes(uneven, ["cat", "dog"], ClassShare(min=0.125, max=0.875), Path("raw"))


def test_copies_conflicts_and_problems_are_counted() -> None:
    in_splits = {"train": "abbc", "validation": "de", "test": "affd", None: "xy"}
    rows = [(split, name) for split, names in in_splits.items() for name in names]
    columns = pl.DataFrame(rows, schema={"split": pl.String, "name": pl.String}, orient="row")
    bad = columns["split"].is_null()
    examples = columns.select(
        "split",
        input_sha256=pl.when(~bad).then("name"),
        label=pl.Series([0, 1, 2, 0, 0, 0, 0, 1, 1, 0, 0, 0]),
        alike=pl.Series([None] * 6 + [0, None, None, 4, None, None]),
        problem=pl.when(bad).then(pl.lit("is empty")),
    )
    assert count_examples(examples) == {
        "train": 4,
        "validation": 2,
        "test": 4,
        "duplicates_across_splits": 4,  # a and d, twice each
        "duplicates_within_split": 4,  # b and f
        "conflicting_labels": 2,  # b
        "alike_across_splits": 2,
        "problems": 2,
    }


def test_rows_of_a_split_are_written_in_their_order(tmp_path: Path) -> None:
    count = splits.CHUNK + 10
    inputs = np.random.default_rng(1).integers(256, size=(2 * count, *SHAPE), dtype=np.uint8)
    rows_N = np.random.default_rng(2).permutation(2 * count)[:count]
    splits.write_split("train", A_SPEC, Joined([inputs[:100], inputs[100:]]), rows_N, tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "train.npy"), inputs[rows_N], strict=True)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, NDArray[np.uint8]]:
    """Store a tiny data set in the current folder, and return its arrays."""
    monkeypatch.chdir(tmp_path)
    NORMALIZED.mkdir(parents=True)
    splits.write_spec(A_SPEC, NORMALIZED)
    random_bytes = np.random.default_rng(1)
    arrays = {split: random_bytes.integers(256, size=(size, *SHAPE), dtype=np.uint8) for split, size in SIZES.items()}
    for split, array in arrays.items():
        splits.write_split(split, A_SPEC, Joined([array]), np.arange(len(array)), NORMALIZED)
    total = sum(SIZES.values())
    examples = make_examples(
        {
            "id": range(total),
            "split": [split for split, size in SIZES.items() for _ in range(size)],
            "label": [index % 3 for index in range(total)],
            "file": ["images"] * total,
            "sha256": checksums(total),
        },
        3,
    )
    write_table(examples, EXAMPLES, schemas.examples(3))
    return arrays


def test_what_was_stored_is_read(stored: dict[str, NDArray[np.uint8]]) -> None:
    dataset = read_dataset()
    assert dataset.spec == A_SPEC
    assert dict(dataset.examples["split"].value_counts().iter_rows()) == SIZES
    first = 0
    for split, array in stored.items():
        inputs, labels_N = dataset.read(split)
        assert isinstance(inputs, np.memmap)
        np.testing.assert_array_equal(inputs, array, strict=True)
        np.testing.assert_array_equal(labels_N, np.arange(first, first + len(array)) % 3, strict=True)
        first += len(array)


def refused(split: str) -> str:
    with pytest.raises(UserError) as refusal:
        read_dataset().read(split)
    return str(refusal.value)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("split", SIZES)
@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (lambda array: array[:-1], np.uint8),
        (lambda array: np.concatenate([array, array[:1]]), np.uint8),
        (lambda array: array[:, :, :-1], np.uint8),
        (lambda array: array.swapaxes(2, 3), np.uint8),
        (lambda array: array[:, 0], np.uint8),
        (lambda array: np.repeat(array, 3, axis=1), np.uint8),
        (lambda array: array, np.int8),
        (lambda array: array, np.float32),
    ],
    ids=["a row less", "a row more", "a line less", "turned", "no plane", "three planes", "int8", "float32"],
)
def test_an_array_that_does_not_fit_the_spec_and_the_table(
    split: str, change: Callable[[NDArray[Any]], NDArray[Any]], dtype: DTypeLike
) -> None:
    other = change(np.load(split_array(split)))
    write_array(split_array(split), other.shape, dtype, [other])
    found = f"{np.dtype(dtype)} {[*other.shape]}"
    assert refused(split) == f"{split_array(split)} holds {found}, expected uint8 {[SIZES[split], *SHAPE]}"


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("split", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_array(split: str, share: float) -> None:
    path = split_array(split)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refused(split).startswith(f"{path} is damaged: ")


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("path", [SPEC, EXAMPLES, split_array("test")], ids=str)
def test_a_missing_file_is_named(path: Path) -> None:
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        read_dataset().read("test")


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff", b"null"])
def test_a_damaged_spec(content: bytes) -> None:
    SPEC.write_bytes(content)
    with pytest.raises(UserError, match=f"^{SPEC} is damaged: "):
        read_dataset()


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    "change",
    [
        {"kind": "sound"},
        {"shape": [5, 4]},
        {"shape": [1, 0, 4]},
        {"shape": [1, 5.0, 4]},
        {"dtype": "float32"},
        {"classes": ["a"]},
        {"classes": "abc"},
        {"mean": None},
        {"mean": ["0.5"]},
        {"mean": [0.5, 0.5]},
        {"std": [float("nan")]},
        {"opening": 1},
        {"surplus": 1},
    ],
    ids=str,
)
def test_a_spec_with_a_wrong_field(change: dict[str, Any]) -> None:
    SPEC.write_text(json.dumps(A_SPEC.model_dump() | change))
    with pytest.raises(UserError, match=f"^{SPEC} is damaged: ") as refusal:
        read_spec()
    assert next(iter(change)) in str(refusal.value)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("field", Spec.model_fields)
def test_a_spec_without_a_field(field: str) -> None:
    SPEC.write_text(json.dumps(A_SPEC.model_dump(exclude={field})))
    with pytest.raises(UserError, match=rf"^{SPEC} is damaged: [\s\S]*{field}"):
        read_spec()


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    "kept",
    [slice(0), slice(-20), slice(20), slice(20, None)],
    ids=["nothing", "all but the end", "only the start", "all but the start"],
)
def test_a_damaged_table(kept: slice) -> None:
    EXAMPLES.write_bytes(EXAMPLES.read_bytes()[kept])
    assert refused("test").startswith(f"{EXAMPLES} is damaged: ")


@pytest.mark.usefixtures("stored")
def test_a_table_of_other_classes() -> None:
    splits.write_spec(A_SPEC.model_copy(update={"classes": ["a", "b"]}), NORMALIZED)
    assert refused("test").startswith(f"{EXAMPLES} violates its schema:\n  column 'label': in_range(0, 1) (4 failing; ")


@pytest.mark.usefixtures("stored")
def test_a_table_whose_splits_are_mixed() -> None:
    pl.read_parquet(EXAMPLES).reverse().write_parquet(EXAMPLES)
    line = "  table: splits in the order train, validation, test, then problems (2 failing; "
    assert refused("test").startswith(f"{EXAMPLES} violates its schema:\n{line}")
