"""Divide a data set into splits, so that the choice for one example hardly depends on the others.

An example's split follows from a hash of its content, or of its group's name, and the seed. It stays where it is when
others are added, so runs of two nights can be compared. The order of the examples, the file system and a random
generator have no part in it. Only in a class that is too small for its hashes to fill each split, some are moved, and
may move back as the class grows.
"""

import hashlib
from collections import Counter
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
    members = examples.filter(pool)
    units = pl.DataFrame({"unit": name_units(members), "label": members["label"]})
    hashes = {unit: fraction(seed, unit) for unit in units["unit"].unique()}
    split_of = {unit: choose_split(hash_, held_out) for unit, hash_ in hashes.items()}
    refuse_small_classes(units, [*held_out], classes, folder)
    if held_out:
        give_each_class_its_share(units, hashes, split_of, [*held_out])
    divided = units["unit"].replace_strict(split_of, return_dtype=pl.String)
    splits = examples["split"].to_frame().with_row_index()
    return splits.update(splits.filter(pool).with_columns(split=divided), on="index")["split"]


def name_units(examples: pl.DataFrame) -> list[str]:
    """Return, for each example, a name that all examples have in common that must stay together with it.

    It is the name of its group, or its checksum. Groups that share copies are one unit, named after the first of them.
    """
    parent: dict[tuple[int, str], tuple[int, str]] = {}

    def find(node: tuple[int, str]) -> tuple[int, str]:
        root = node
        while parent.setdefault(root, root) != root:
            root = parent[root]
        while parent[node] != root:
            parent[node], node = root, parent[node]
        return root

    nodes = []
    for group, checksum in examples.select("group", "sha256").iter_rows():
        nodes.append((1, checksum))
        if group is not None:
            first, second = sorted((find((0, group)), find((1, checksum))))  # Groups come first.
            parent[second] = first
    return [find(node)[1] for node in nodes]


def fraction(seed: int, unit: str) -> float:
    """Return a number in [0, 1) that only depends on the seed and the unit, spread evenly over units."""
    return int(hashlib.sha256(f"{seed} {unit}".encode()).hexdigest()[:DIGITS], 16) / 16**DIGITS


def choose_split(hash_: float, held_out: dict[str, float]) -> str:
    """Return the split in whose interval a hash lies; the intervals of those held out come first."""
    end = 0.0
    for split, share in held_out.items():
        end += share
        if hash_ < end:
            return split
    return "train"


def refuse_small_classes(units: pl.DataFrame, held_out: list[str], classes: list[str], folder: Path) -> None:
    """Raise `UserError` if a class has fewer units than there are splits that need one."""
    needed = 1 + len(held_out)
    sizes = units.unique().group_by("label").len().sort("label")
    small = sizes.filter(pl.col("len") < needed)
    if held_out and len(small):
        named = [f"'{classes[label]}' has {count}" for label, count in small.head(SHOWN).iter_rows()]
        more = f" and {len(small) - SHOWN:,} more classes" if len(small) > SHOWN else ""
        wanted = ", ".join(["train", *held_out])
        raise UserError(
            f"{folder}: each class needs {needed} different examples or groups, one in each of {wanted}, but class"
            f" {', '.join(named)}{more}; add examples to these classes or remove them"
        )


def give_each_class_its_share(
    units: pl.DataFrame, hashes: dict[str, float], split_of: dict[str, str], held_out: list[str]
) -> None:
    """Move the unit of the lowest hash into each split that lacks a class, in `split_of`."""
    of_label: dict[int, list[str]] = {}
    labels_of: dict[str, list[int]] = {}
    for unit, label in units.unique().sort("label", "unit").iter_rows():
        of_label.setdefault(label, []).append(unit)
        labels_of.setdefault(unit, []).append(label)
    counts = Counter((label, split_of[unit]) for unit, labels in labels_of.items() for label in labels)
    for label, found in of_label.items():
        for split in ["train", *held_out]:
            if counts[label, split]:
                continue
            for unit in sorted(found, key=lambda unit: (hashes[unit], unit)):
                # A unit of several classes must not leave a split that has no other one of them.
                if all(counts[other, split_of[unit]] > 1 for other in labels_of[unit]):
                    counts.subtract((other, split_of[unit]) for other in labels_of[unit])
                    counts.update((other, split) for other in labels_of[unit])
                    split_of[unit] = split
                    break


def refuse_divided_groups(examples: pl.DataFrame, folder: Path) -> None:
    """Raise `UserError` if examples of one group are given to several splits; those without a split count as train."""
    given = examples.filter(pl.col("group").is_not_null()).with_columns(pl.col("split").fill_null("train"))
    found = given.group_by("group", maintain_order=True).agg(pl.col("split").unique().sort())
    divided = found.filter(pl.col("split").list.len() > 1)
    if len(divided):
        named = [f"'{group}' in {' and '.join(splits)}" for group, splits in divided.head(SHOWN).iter_rows()]
        raise UserError(
            f"{folder}: a group must lie in one of the splits {', '.join(SPLITS)}, but {len(divided):,} lie in several:"
            f" {'; '.join(named)}"
        )
