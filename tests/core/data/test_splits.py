"""Test how examples are held out, and that a damaged or inconsistent data set is reported by name."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import DTypeLike, NDArray

from stages.core.config.params import load_params
from stages.core.data import schemas, splits
from stages.core.data.config import ClassShare
from stages.core.data.splits import check_classes, count_examples, hold_out, read_dataset, read_spec
from stages.core.examples.spec import Spec
from stages.core.files.arrays import write_array
from stages.core.files.errors import UserError
from stages.core.files.layout import EXAMPLES, NORMALIZED, SPEC, split_array
from stages.core.files.tables import write_table
from tests.conftest import PROJECT

MNIST_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # images of each class
SIZES = {"train": 6, "validation": 3, "test": 4}
SHAPE = (1, 5, 4)
A_SPEC = Spec(
    kind="image", shape=SHAPE, dtype="uint8", classes=["a", "b", "c"], mean=0.5, std=0.5, centre_ink=False
)  # fmt: skip


def checksums(count: int) -> list[str]:
    """Return checksums of as many different examples."""
    return splits.checksums_of(np.arange(count, dtype=np.uint32))


def held_by_class(labels_N: NDArray[np.integer], share: float, seed: int = 1) -> list[int]:
    held_N = hold_out(labels_N, checksums(len(labels_N)), share, seed)
    return np.bincount(labels_N[held_N], minlength=int(labels_N.max()) + 1).tolist()


def test_the_choice_is_stratified() -> None:
    labels_N = np.random.default_rng(1).permutation([0] * 50 + [1] * 30 + [2] * 20)
    assert held_by_class(labels_N, 0.1) == [5, 3, 2]
    # Exact are 3.5, 2.1 and 1.4; the largest remainder gets the seventh.
    assert held_by_class(labels_N, 0.07) == [4, 2, 1]


def test_5000_of_the_60000_of_mnist_are_held_out() -> None:
    labels_N = np.arange(10, dtype=np.uint8).repeat(MNIST_COUNTS)
    share = load_params(PROJECT / "params.yaml").normalize.validation
    assert held_by_class(labels_N, share) == [494, 562, 496, 511, 487, 452, 493, 522, 487, 496]


@pytest.mark.parametrize("share", [0.0001, 0.07, 0.5, 0.9999])
def test_a_class_of_two_examples_is_on_both_sides(share: float) -> None:
    labels_N = np.array([0] * 90 + [1] * 7 + [2] * 2 + [4])
    held_N = hold_out(labels_N, checksums(100), share, seed=1)
    assert np.unique(labels_N[~held_N]).tolist() == [0, 1, 2, 4]
    assert np.unique(labels_N[held_N]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("share", "held_out"),
    [(0.01, 7), (0.07, 7), (0.1, 10), (0.104, 10), (0.106, 11), (0.5, 50), (0.93, 93), (0.99, 93)],
)
def test_the_share_is_rounded_and_leaves_each_class_on_both_sides(share: float, held_out: int) -> None:
    held_N = hold_out(np.arange(100) % 7, checksums(100), share, seed=3)
    assert held_N.shape == (100,)
    assert held_N.sum() == held_out


def test_neither_the_order_nor_the_random_generators_affect_the_choice() -> None:
    labels_N, names = np.arange(300) % 10, checksums(300)
    held_N = hold_out(labels_N, names, 1 / 6, seed=1)
    order_N = np.random.default_rng(1).permutation(300)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002  # It is the global generator that must not matter.
    again_N = hold_out(labels_N[order_N], [names[index] for index in order_N], 1 / 6, seed=1)
    assert again_N.tolist() == held_N[order_N].tolist()


def test_the_seed_changes_the_choice() -> None:
    labels_N, names = np.arange(300) % 10, checksums(300)
    first, again, other = (hold_out(labels_N, names, 1 / 6, seed).tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sum(first) == sum(other) == 50


def test_any_example_may_be_held_out() -> None:
    """The choice does not prefer a place in the file."""
    labels_N, names = np.zeros(200, int), checksums(200)
    chosen_N = np.sum([hold_out(labels_N, names, 0.1, seed) for seed in range(400)], axis=0)
    assert chosen_N.min() > 0
    assert abs(chosen_N[:100].sum() / chosen_N.sum() - 0.5) < 0.03


def test_copies_stay_on_the_same_side_but_where_the_border_lies() -> None:
    labels_N, names = np.zeros(300, int), [name for name in checksums(100) for _ in range(3)]
    held_N = hold_out(labels_N, names, 0.1, seed=1)
    assert held_N.sum() == 30
    assert np.isin(held_N.reshape(100, 3).sum(axis=1), [0, 3]).all()
    held_N = hold_out(labels_N, names, 31 / 300, seed=1)
    assert sorted(held_N.reshape(100, 3).sum(axis=1))[-11:] == [1] + [3] * 10


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
        "raw: each class needs two images in the training file and one in the test file, found:",
        "  validation: no image of class 'dog'",
        "  test: no image of class 'cat'",
    ]


def test_a_share_out_of_bounds_is_reported_with_bounds_that_would_do() -> None:
    uneven = table("0001", "01", "01111111")
    assert refused_classes(uneven, 0.2, 0.8) == [
        "params.yaml: normalize.class_share: shares must be 0.2 to 0.8, raw has:",
        "  test: class 'cat' has 0.1250",
        "  test: class 'dog' has 0.8750",
        "  `min: 0.125` and `max: 0.875` there would allow it",
    ]
    check_classes(uneven, ["cat", "dog"], ClassShare(min=0.125, max=0.875), Path("raw"))


def test_copies_are_counted_within_and_across_splits() -> None:
    in_splits = {"train": "abbc", "validation": "de", "test": "affd"}
    rows = [(split, name) for split, names in in_splits.items() for name in names]
    examples = pl.DataFrame(rows, schema={"split": pl.String, "sha256": pl.String}, orient="row")
    assert count_examples(examples) == {
        "train": 4,
        "validation": 2,
        "test": 4,
        "duplicates_across_splits": 4,  # a and d, twice each
        "duplicates_within_split": 4,  # b and f
    }


@pytest.mark.parametrize("count", [1, splits.CHUNK, splits.CHUNK + 1, 2 * splits.CHUNK + 5])
def test_chunks_are_all_of_the_inputs_in_order(count: int) -> None:
    parts = list(splits.chunks(np.arange(count)))
    assert max(map(len, parts)) <= splits.CHUNK
    assert np.concatenate(parts).tolist() == list(range(count))


def test_rows_of_a_split_are_written_in_their_order(tmp_path: Path) -> None:
    count = splits.CHUNK + 10
    inputs = np.random.default_rng(1).integers(256, size=(2 * count, *SHAPE), dtype=np.uint8)
    rows_N = np.random.default_rng(2).permutation(2 * count)[:count]
    splits.write_split("train", A_SPEC, inputs, rows_N, tmp_path)
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
        splits.write_split(split, A_SPEC, array, np.arange(len(array)), NORMALIZED)
    total = sum(SIZES.values())
    examples = pl.DataFrame(
        {
            "id": range(total),
            "split": [split for split, size in SIZES.items() for _ in range(size)],
            "label": [index % 3 for index in range(total)],
            "file": ["images"] * total,
            "sha256": checksums(total),
            "pixel_mean": pl.Series([7] * total, dtype=pl.Float32),
            "pixel_std": pl.Series([7] * total, dtype=pl.Float32),
        }
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
        {"mean": "0.5"},
        {"std": float("nan")},
        {"centre_ink": 1},
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
    line = "  table: splits in the order train, validation, test (2 failing; "
    assert refused("test").startswith(f"{EXAMPLES} violates its schema:\n{line}")
