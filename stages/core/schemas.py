"""What every file between two stages must hold: pandera schemas of the tensors and tables."""

from collections.abc import Callable

import pandera.polars as pa
import polars as pl
import torch
from pandera.api.checks import Check
from pandera.tensordict import Tensor as TensorColumn
from pandera.tensordict import TensorDictSchema
from torch import Tensor

PART = 4096  # images looked at together
SPLITS = ["train", "validation", "test"]


def raw(num_classes: int) -> TensorDictSchema:
    """A data set as it was downloaded."""
    return TensorDictSchema(
        keys={
            "image": TensorColumn(torch.uint8, (None, 1, None, None)),
            "label": TensorColumn(torch.uint8, (None,), label_in(num_classes)),
        },
        batch_size=(None,),
    )


def normalized(num_classes: int, mean: float, std: float) -> TensorDictSchema:
    """One split: float32 images in the range that bytes are mapped to, int64 labels, ids unique in the data set."""
    low, high = (0 - mean) / std, (1 - mean) / std
    slack = 1e-6 * max(abs(low), abs(high))  # float32 rounding
    return TensorDictSchema(
        keys={
            "image": TensorColumn(
                torch.float32,
                (None, 1, None, None),
                [
                    image_check(torch.isfinite, "all pixels finite"),
                    image_check(lambda x: (x >= low - slack) & (x <= high + slack), f"all pixels in {low:g}..{high:g}"),
                ],
            ),
            "label": TensorColumn(torch.int64, (None,), label_in(num_classes)),
            "id": TensorColumn(torch.int64, (None,), Check(occurs_once, error="unique")),
        },
        batch_size=(None,),
    )


def summary(num_classes: int) -> pa.DataFrameSchema:
    """One row per image of all splits."""
    return pa.DataFrameSchema(
        {
            "id": pa.Column(pl.Int64, unique=True),
            "split": pa.Column(pl.String, pa.Check.isin(SPLITS)),
            "label": pa.Column(pl.Int64, pa.Check.in_range(0, num_classes - 1)),
            "pixel_mean": pa.Column(pl.Float32, pa.Check.in_range(0, 255)),
            "pixel_std": pa.Column(pl.Float32, pa.Check.gt(0, error="no constant image")),
            "sha256": pa.Column(pl.String, pa.Check.str_matches("^[0-9a-f]{64}$")),
        },
        checks=pa.Check(each_id_in_one_split, error="no id in two splits"),
        strict=True,
    )


def history() -> pa.DataFrameSchema:
    """One row per epoch, in order."""
    positive, share = pa.Check(finite_and_not_negative, error="finite and not negative"), pa.Check.in_range(0, 1)
    return pa.DataFrameSchema(
        {
            "epoch": pa.Column(pl.Int64, pa.Check(counts_from_one, error="epochs 1, 2, 3, ... in order")),
            "train_loss": pa.Column(pl.Float64, positive),
            "train_accuracy": pa.Column(pl.Float64, share),
            "validation_loss": pa.Column(pl.Float64, positive),
            "validation_accuracy": pa.Column(pl.Float64, share),
            "lr": pa.Column(pl.Float64, positive),
        },
        strict=True,
    )


def predictions(num_classes: int, num_images: int) -> pa.DataFrameSchema:
    """One row per test image, in their order."""
    label = pa.Check.in_range(0, num_classes - 1)
    return pa.DataFrameSchema(
        {
            "index": pa.Column(pl.Int64, pa.Check(counts_from_zero, error="indices 0, 1, 2, ... in order")),
            "label": pa.Column(pl.Int64, label),
            "prediction": pa.Column(pl.Int64, label),
            "confidence": pa.Column(pl.Float64, pa.Check.in_range(0, 1)),
        },
        checks=pa.Check(
            lambda data: data.lazyframe.select(pl.len() == num_images), error=f"one row for each of {num_images} images"
        ),
        strict=True,
    )


def per_class() -> pa.DataFrameSchema:
    """One row per class of the test split."""
    share = pa.Check.in_range(0, 1)
    return pa.DataFrameSchema(
        {
            "class": pa.Column(pl.String, unique=True),
            "images": pa.Column(pl.Int64, pa.Check.gt(0)),
            "precision": pa.Column(pl.Float64, share),
            "recall": pa.Column(pl.Float64, share),
            "f1": pa.Column(pl.Float64, share),
        },
        strict=True,
    )


def occurs_once(ids_N: Tensor) -> Tensor:
    _, place_N, counts = ids_N.unique(return_inverse=True, return_counts=True)
    unique_N: Tensor = counts[place_N] == 1
    return unique_N


def label_in(num_classes: int) -> Check:
    # pandera's own in_range is not known for memory-mapped tensors
    return Check(lambda labels_N: (labels_N >= 0) & (labels_N < num_classes), error=f"in 0..{num_classes - 1}")


def image_check(holds: Callable[[Tensor], Tensor], error: str) -> Check:
    """A check of pixels that fails by image: pandera renders each failing element, and an image has hundreds."""

    def first_failures(images_NCHW: Tensor) -> Tensor:
        # in parts, for a memory map can be larger than the memory
        good_N = torch.cat([holds(part).flatten(1).all(dim=1) for part in images_NCHW.split(PART)])
        good_N[(~good_N).nonzero()[5:]] = True  # five are enough to act on
        return good_N

    return Check(first_failures, error=error)


def each_id_in_one_split(data: pa.PolarsData) -> pl.LazyFrame:
    return data.lazyframe.select(pl.col("split").n_unique().over("id") == 1)


def finite_and_not_negative(data: pa.PolarsData) -> pl.LazyFrame:
    return data.lazyframe.select(pl.col(data.key).is_finite() & (pl.col(data.key) >= 0))


def counts_from_one(data: pa.PolarsData) -> pl.LazyFrame:
    return data.lazyframe.select(pl.col(data.key) == pl.int_range(1, pl.len() + 1))


def counts_from_zero(data: pa.PolarsData) -> pl.LazyFrame:
    return data.lazyframe.select(pl.col(data.key) == pl.int_range(pl.len()))
