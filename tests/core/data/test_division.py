"""Test that the division into splits is stable, keeps together what belongs together, and serves each class."""

import hashlib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.data.division import divide
from stages.core.files.errors import UserError

SHARES = {"validation": 0.15, "test": 0.15}
FOLDER = Path("data/flowers")
SPLITS = {"train", "validation", "test"}


def make(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    """Return examples from (content, label, group, split), of which the last two may be left out."""
    full = [(hashlib.sha256(str(row[0]).encode()).hexdigest(), *row[1:], *[None] * (4 - len(row))) for row in rows]
    schema = {"sha256": pl.String, "label": pl.Int64, "group": pl.String, "split": pl.String}
    return pl.DataFrame(full, schema, orient="row")


def split(rows: list[tuple[Any, ...]], seed: int = 1) -> list[str]:
    return divide(make(rows), SHARES, ["rose", "tulip", "daisy"], seed, FOLDER).to_list()


LARGE = [(f"base {number}", number % 3) for number in range(300)]  # Its hashes fill each split of each class.


def test_the_shares_are_approximately_kept() -> None:
    found = split([(number, number % 3) for number in range(6000)])
    assert found.count("test") / 6000 == pytest.approx(0.15, abs=0.02)
    assert found.count("validation") / 6000 == pytest.approx(0.15, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(), st.integers(0, 2), st.sampled_from([None, "a", "b", "c"])), max_size=50))
def test_an_example_never_changes_sides_when_others_are_added(added: list[tuple[Any, ...]]) -> None:
    before = split(LARGE)
    assert split([*LARGE, *added])[: len(LARGE)] == before


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_does_not_matter(random: Any) -> None:
    rows = [(number, number % 2, f"group {number // 4}" if number % 3 else None) for number in range(100)]
    expected = dict(zip(rows, split(rows), strict=True))
    random.shuffle(rows)
    assert dict(zip(rows, split(rows), strict=True)) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2), st.sampled_from([None, *"abcdef"])), max_size=60))
def test_groups_and_copies_stay_together(added: list[tuple[Any, ...]]) -> None:
    rows = [*LARGE, *added]
    found = split(rows)
    for position in (0, 2):
        sides: dict[Any, set[str]] = {}
        for row, side in zip(added, found[len(LARGE) :], strict=True):
            sides.setdefault(row[position], set()).add(side)
        assert all(len(of) == 1 for key, of in sides.items() if key is not None)


def test_copies_in_two_groups_join_them() -> None:
    rows = [*LARGE, *[(f"x{number}", 0, f"group {number // 2}") for number in range(20)]]
    joined = [("copy", 0, f"group {number}") for number in range(10)]
    assert len(set(split([*rows, *joined])[len(LARGE) :])) == 1
    assert len(set(split(rows)[len(LARGE) :])) > 1


def test_a_copy_without_a_group_does_not_move_the_group() -> None:
    rows = [*LARGE, *[(f"x{number}", 0, f"group {number}") for number in range(30)]]
    copies = [(f"x{number}", 0) for number in range(30)]
    found = split([*rows, *copies])
    assert found[: len(rows)] == split(rows)
    assert found[len(rows) :] == found[len(LARGE) : len(rows)]


@pytest.mark.parametrize("count", [3, 4, 5, 8])
@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_in_each_split(count: int, seed: int) -> None:
    rows = [(f"{label} {number}", label) for label in range(3) for number in range(count)]
    found = split(rows, seed)
    for label in range(3):
        assert {side for row, side in zip(rows, found, strict=True) if row[1] == label} == SPLITS


@pytest.mark.parametrize("seed", range(20))
def test_each_class_is_in_each_split_where_groups_hold_several(seed: int) -> None:
    rows = [(f"{label} {number}", label, f"patient {number}") for label in range(3) for number in range(6)]
    found = split(rows, seed)
    for label in range(3):
        assert {side for row, side in zip(rows, found, strict=True) if row[1] == label} == SPLITS


def test_another_seed_gives_another_division() -> None:
    assert split(LARGE, 1) != split(LARGE, 2)


def test_given_splits_are_kept_and_only_validation_is_held_out_beside_a_test_split() -> None:
    rows = [(number, number % 3, None, "test" if number % 5 == 0 else "train") for number in range(500)]
    found = split(rows)
    assert all((side == "test") == (row[3] == "test") for row, side in zip(rows, found, strict=True))
    assert 0.1 < found.count("validation") / 400 < 0.2


def test_nothing_moves_where_all_splits_are_given() -> None:
    names = ["train", "validation", "test"]
    rows = [(number, 0, None, names[number % 3]) for number in range(9)]
    assert split(rows) == [row[3] for row in rows]


def test_examples_without_a_split_beside_given_ones_are_training_examples() -> None:
    rows = [(number, number % 2, None, "test" if number < 20 else None) for number in range(200)]
    found = split(rows)
    assert found[:20] == ["test"] * 20
    assert set(found[20:]) == {"train", "validation"}


def test_classes_that_are_too_small_are_named() -> None:
    rows = [*[("a", 0), ("a", 0), ("b", 0)], ("c", 1), *[(number, 2) for number in range(9)]]
    with pytest.raises(UserError) as error:
        split(rows)
    assert str(error.value) == (
        "data/flowers: each class needs 3 different examples or groups, one in each of train, test, validation, but"
        " class 'rose' has 2, 'tulip' has 1; add examples to these classes or remove them"
    )


def test_many_classes_that_are_too_small_are_counted() -> None:
    names = [f"class {label}" for label in range(300)]
    with pytest.raises(UserError, match=r"'class 4' has 1 and 295 more classes; add examples"):
        divide(make([(label, label) for label in range(300)]), SHARES, names, 1, FOLDER)


@pytest.mark.parametrize("other", ["train", None])
def test_a_group_across_splits_is_named(other: str | None) -> None:
    rows = [(1, 0, "writer 7", "test"), (2, 0, "writer 7", other), (3, 0, "writer 8", "test")]
    with pytest.raises(UserError, match=r"but 1 lie in several: 'writer 7' in test and train$"):
        split(rows)


def test_100_000_examples_of_10_000_classes_are_divided() -> None:
    rows = make([(number, number % 10_000) for number in range(100_000)])
    found = divide(rows, SHARES, [str(label) for label in range(10_000)], 1, FOLDER)
    assert rows.with_columns(found.alias("found")).group_by("label").agg(pl.col("found").n_unique())["found"].min() == 3
