"""Divide a data set into splits, store them, and read them.

artifacts/normalized/ holds one uint8 .npy file per split, a table with one row per example in the same order, and the
spec of an example.
"""

import hashlib
import json
from collections.abc import Iterator
from math import ceil, floor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ValidationError

from stages.core.data import schemas
from stages.core.data.config import ClassShare
from stages.core.examples.spec import Spec
from stages.core.files.arrays import map_array, write_array
from stages.core.files.errors import UserError
from stages.core.files.layout import EXAMPLES, SPEC, split_array
from stages.core.files.tables import read_table

CHUNK = 4096  # examples handled at once


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


def hold_out(labels_N: NDArray[np.integer], checksums: list[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Return a mask of the examples to hold out: `share` of each class, chosen by the checksum of their content.

    The choice depends on neither the order of the examples nor a random generator, and copies of an example stay on the
    same side, unless the boundary falls among them. Numbers of examples are rounded by the largest-remainder method. A
    class of two or more examples has some on both sides.
    """
    counts_K, total = np.bincount(labels_N), round(share * len(labels_N))
    exact_K = counts_K * total / len(labels_N)
    take_K = exact_K.astype(int)
    missing = total - int(take_K.sum())
    take_K[np.argsort(take_K - exact_K, kind="stable")[:missing]] += 1
    take_K = np.clip(np.minimum(np.maximum(take_K, 1), counts_K - 1), 0, None)
    ranks = np.array([hashlib.sha256(f"{seed} {checksum}".encode()).hexdigest() for checksum in checksums])
    held_N = np.zeros(len(labels_N), bool)
    for label, take in enumerate(take_K):
        members = np.flatnonzero(labels_N == label)
        held_N[members[np.argsort(ranks[members], kind="stable")[:take]]] = True
    return held_N


def check_classes(examples: pl.DataFrame, classes: list[str], bounds: ClassShare, folder: Path) -> None:
    """Raise `UserError` if a split lacks a class or a class's share of a split is out of bounds."""
    missing, outside, shares = [], [], [bounds.min, bounds.max]
    for split in schemas.SPLITS:
        counts_K = np.bincount(examples.filter(split=split)["label"].to_numpy(), minlength=len(classes))
        for name, images in zip(classes, counts_K.tolist(), strict=True):
            if images == 0:
                missing.append(f"  {split}: no image of class '{name}'")
            elif not bounds.min <= (share := images / int(counts_K.sum())) <= bounds.max:
                outside.append(f"  {split}: class '{name}' has {share:.4f}")
                shares.append(share)
    if missing:
        needed = "each class needs two images in the training file and one in the test file"
        raise UserError("\n".join([f"{folder}: {needed}, found:", *missing]))
    if outside:
        allowed = f"params.yaml: normalize.class_share: shares must be {bounds.min} to {bounds.max}, {folder} has:"
        low, high = floor(min(shares) * 1000) / 1000, ceil(max(shares) * 1000) / 1000
        raise UserError("\n".join([allowed, *outside, f"  `min: {low}` and `max: {high}` there would allow it"]))


def count_examples(examples: pl.DataFrame) -> dict[str, int]:
    """Return the number of examples by split, and how many have an exact copy in the same or in another split."""
    copies = examples.group_by("sha256").agg(images=pl.len(), splits=pl.col("split").n_unique())
    sizes = {split: examples.filter(split=split).height for split in schemas.SPLITS}
    across = int(copies.filter(pl.col("splits") > 1)["images"].sum())
    within = int(copies.filter((pl.col("splits") == 1) & (pl.col("images") > 1))["images"].sum())
    return {**sizes, "duplicates_across_splits": across, "duplicates_within_split": within}


def chunks(inputs: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Yield the inputs in parts, because they may be mapped from a file that is larger than memory."""
    for start in range(0, len(inputs), CHUNK):
        yield inputs[start : start + CHUNK]


def checksums_of(inputs: NDArray[np.generic]) -> list[str]:
    """Return the sha256 of the bytes of each example."""
    return [hashlib.sha256(np.ascontiguousarray(example).data).hexdigest() for example in inputs]


def write_spec(spec: Spec, folder: Path) -> None:
    """Write the spec to `folder`."""
    (folder / SPEC.name).write_text(json.dumps(spec.model_dump(), indent=2) + "\n", encoding="utf-8")


def write_split(split: str, spec: Spec, inputs: NDArray[np.generic], rows_N: NDArray[np.intp], folder: Path) -> None:
    """Write the chosen rows of the raw inputs to `folder` as the array of a split."""
    parts = (inputs[rows_N[start : start + CHUNK]] for start in range(0, len(rows_N), CHUNK))
    write_array(folder / split_array(split).name, (len(rows_N), *spec.shape), spec.dtype, parts)
