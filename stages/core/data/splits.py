"""Check, store and read the splits of a data set.

artifacts/normalized/ holds one uint8 .npy file per split, a table with one row per example in the same order, and the
spec of an example.
"""

import json
from math import ceil, floor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ValidationError

from stages.core.data import schemas
from stages.core.data.config import ClassShare
from stages.core.data.raw import Joined
from stages.core.examples.spec import Spec
from stages.core.files.arrays import map_array, write_array
from stages.core.files.errors import UserError
from stages.core.files.layout import EXAMPLES, SPEC, split_array
from stages.core.files.tables import read_table

CHUNK = 4096  # examples handled at once
SHOWN = 20  # lines of a message


class Split(NamedTuple):
    """Hold the examples of one split."""

    inputs: NDArray[np.generic]  # raw, [N, *spec.shape], mapped from the file
    labels: NDArray[np.int64]  # [N]


class Dataset(NamedTuple):
    """Hold what stage `normalize` wrote about the data set."""

    spec: Spec
    examples: pl.DataFrame

    def read(self, split: str) -> Split:
        """Map one split; raise `UserError` if the array does not match the spec and the table."""
        labels_N = self.examples.filter(split=split)["label"].to_numpy(writable=True)
        return Split(map_array(split_array(split), (len(labels_N), *self.spec.shape), self.spec.dtype), labels_N)


def read_spec(path: Path = SPEC) -> Spec:
    """Return the spec in a JSON file; raise `UserError` if it is damaged."""
    try:
        return Spec.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def read_dataset() -> Dataset:
    """Return the data set that stage `normalize` wrote, after validating its table."""
    spec = read_spec()
    return Dataset(spec, read_table(EXAMPLES, schemas.examples(len(spec.classes))))


def check_classes(examples: pl.DataFrame, classes: list[str], bounds: ClassShare, folder: Path) -> None:
    """Raise `UserError` if a split lacks a class or a class's share of a split is out of bounds."""
    missing, outside, shares = [], [], [bounds.min, bounds.max]
    for split in schemas.SPLITS:
        counts_K = np.bincount(examples.filter(split=split)["label"].to_numpy(), minlength=len(classes))
        for name, count in zip(classes, counts_K.tolist(), strict=True):
            if count == 0:
                missing.append(f"  {split}: no example of class '{name}'")
            elif not bounds.min <= (share := count / int(counts_K.sum())) <= bounds.max:
                outside.append(f"  {split}: class '{name}' has {share:.4f}")
                shares.append(share)
    if missing:
        needed = "each split needs an example of each class"
        raise UserError("\n".join([f"{folder}: {needed}, found:", *shorten(missing)]))
    if outside:
        allowed = f"class_share: shares must be from {bounds.min} to {bounds.max}, {folder} has:"
        low, high = floor(min(shares) * 1000) / 1000, ceil(max(shares) * 1000) / 1000
        advice = f"  `class_share: {{min: {low}, max: {high}}}` in its dataset.yaml would allow it"
        raise UserError("\n".join([allowed, *shorten(outside), advice]))


def shorten(lines: list[str]) -> list[str]:
    """Return the first lines of a message and the number of the others."""
    return lines[:SHOWN] + ([f"  and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else [])


def count_examples(examples: pl.DataFrame) -> dict[str, int]:
    """Return the number of examples by split, and how many are copied, alike, in conflict or left out.

    An example has copies if other inputs are equal byte by byte, in the same or in another split; it conflicts if one
    of these has another label. It is alike if one that looks the same is in another split; copies count there, too.
    """
    copies = examples.drop_nulls("input_sha256").group_by("input_sha256")
    of_input = copies.agg(count=pl.len(), splits=pl.col("split").n_unique(), labels=pl.col("label").n_unique())
    across = pl.col("splits") > 1
    sums = of_input.select(
        duplicates_across_splits=pl.col("count").filter(across).sum(),
        duplicates_within_split=pl.col("count").filter(~across & (pl.col("count") > 1)).sum(),
        conflicting_labels=pl.col("count").filter(pl.col("labels") > 1).sum(),
    )
    sizes = {split: examples.filter(split=split).height for split in schemas.SPLITS}
    alike = {"alike_across_splits": len(examples) - examples["alike"].null_count()}
    problems = {"problems": len(examples) - examples["problem"].null_count()}
    return {**sizes, **{name: int(sums[name][0]) for name in sums.columns}, **alike, **problems}


def write_spec(spec: Spec, folder: Path) -> None:
    """Write the spec to `folder`."""
    (folder / SPEC.name).write_text(json.dumps(spec.model_dump(), indent=2) + "\n", encoding="utf-8")


def write_split(split: str, spec: Spec, inputs: Joined, rows_N: NDArray[np.intp], folder: Path) -> None:
    """Write the chosen rows of the raw inputs as the array of a split to `folder`."""
    path = folder / split_array(split).name
    write_array(path, (len(rows_N), *spec.shape), spec.dtype, inputs.chunks(rows_N, CHUNK))
