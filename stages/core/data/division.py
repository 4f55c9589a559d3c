"""Divide a data set into splits, so that the choice for one example never depends on the others.

An example's split follows from a hash of its content, or of its group's name, and the seed. So it stays where it is when
others are added, and runs of two nights can be compared. The order of the examples, the file system and a random
generator have no part in it.
"""

import hashlib
from pathlib import Path

import polars as pl

from stages.core.data.schemas import SPLITS
from stages.core.files.errors import UserError

HELD_OUT = ["test", "validation"]  # the splits that are taken from the training examples where they are not given
SHOWN = 5  # classes or groups named in a message
DIGITS = 13  # hexadecimal digits of a hash, the 52 bits that a float64 holds exactly


def divide(examples: pl.DataFrame, shares: dict[str, float], classes: list[str], seed: int, folder: Path) -> pl.Series:
    """Return the split of each example.

    Args:
        examples: the columns label (an index of `classes`), split (null where it is not given), group (null for
            none) and sha256 (of the content).
        shares: the share of each split that is held out where the data set does not give it.
        classes: the names of the labels, for messages.
        seed: another one gives another division.
        folder: where the data set is, for messages.

    Copies of an example, and examples of one group, stay together. Each class gets at least one example, or group, in
    each split: if the hashes give it none, the one with the lowest hash is moved. Raises `UserError` if a class is too
    small for that or if the given splits divide a group.
    """
    refuse_divided_groups(examples, folder)
    held_out = {split: shares[split] for split in HELD_OUT if split not in examples["split"]}
    pool = examples["split"].fill_null("train") == "train"
    units = examples.select(unit=pl.coalesce("group", "sha256"), label="label").filter(pool)
    by_unit = units.group_by("unit", maintain_order=True).agg(pl.col("label").unique())
    by_unit = by_unit.with_columns(hash=pl.Series([fraction(seed, unit) for unit in by_unit["unit"]], dtype=pl.Float64))
    split_of = dict.fromkeys(by_unit["unit"], "train")
    start = 0.0
    for split, share in held_out.items():
        chosen = by_unit.filter(pl.col("hash").is_between(start, start + share, closed="left"))
        split_of.update(dict.fromkeys(chosen["unit"], split))
        start += share
    give_each_class_its_share(by_unit, split_of, [*held_out], classes, folder)
    divided = units["unit"].replace_strict(split_of, return_dtype=pl.String)
    splits = examples["split"].to_frame().with_row_index()
    new = splits.filter(pool).with_columns(split=divided)
    return splits.update(new, on="index")["split"]


def fraction(seed: int, unit: str) -> float:
    """Return a number in [0, 1) that only depends on the seed and the unit, spread evenly over units."""
    return int(hashlib.sha256(f"{seed} {unit}".encode()).hexdigest()[:DIGITS], 16) / 16**DIGITS


def give_each_class_its_share(
    by_unit: pl.DataFrame, split_of: dict[str, str], held_out: list[str], classes: list[str], folder: Path
) -> None:
    """Move the unit of the lowest hash into each held-out split that lacks a class, in `split_of`."""
    if not held_out:
        return
    members = by_unit.explode("label").sort("label", "hash", "unit")
    needed = 1 + len(held_out)
    small = members.group_by("label", maintain_order=True).len().filter(pl.col("len") < needed)
    if len(small):
        named = [f"'{classes[label]}' has {count}" for label, count in small.head(SHOWN).iter_rows()]
        more = f" and {len(small) - SHOWN:,} more classes" if len(small) > SHOWN else ""
        wanted = ", ".join(["train", *held_out])
        raise UserError(
            f"{folder}: each class needs {needed} different examples or groups, one in each of {wanted}, but class"
            f" {', '.join(named)}{more}; add examples to these classes or remove them"
        )
    for (_,), rows in members.group_by("label", maintain_order=True):
        units = rows["unit"].to_list()
        present = [split_of[unit] for unit in units]
        for split in ["train", *held_out]:
            if split not in present:
                giver = next(index for index, other in enumerate(present) if present.count(other) > 1)
                split_of[units[giver]] = present[giver] = split


def refuse_divided_groups(examples: pl.DataFrame, folder: Path) -> None:
    """Raise `UserError` if examples of one group are given to several splits."""
    given = examples.filter(pl.col("split").is_not_null() & pl.col("group").is_not_null())
    found = given.group_by("group", maintain_order=True).agg(pl.col("split").unique().sort())
    divided = found.filter(pl.col("split").list.len() > 1)
    if len(divided):
        named = [f"'{group}' in {' and '.join(splits)}" for group, splits in divided.head(SHOWN).iter_rows()]
        raise UserError(
            f"{folder}: a group must lie in one of the splits {', '.join(SPLITS)}, but {len(divided):,} lie in several:"
            f" {'; '.join(named)}"
        )
