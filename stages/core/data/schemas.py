"""Define pandera schemas for the tables about the data set."""

import pandera.polars as pa
import polars as pl

SPLITS = ["train", "validation", "test"]


def raw_labels(num_classes: int) -> pa.DataFrameSchema:
    """Return the schema of the labels as they were delivered."""
    return pa.DataFrameSchema({"label": pa.Column(pl.UInt8, pa.Check.in_range(0, num_classes - 1))}, strict=True)


def examples(num_classes: int) -> pa.DataFrameSchema:
    """Return the schema of the table with one row for each example of all splits."""
    return pa.DataFrameSchema(
        {
            "id": pa.Column(pl.Int64, unique=True),
            "split": pa.Column(pl.String, pa.Check.isin(SPLITS)),
            "label": pa.Column(pl.Int64, pa.Check.in_range(0, num_classes - 1)),
            "file": pa.Column(pl.String),
            "sha256": pa.Column(pl.String, pa.Check.str_matches("^[0-9a-f]{64}$")),
            "pixel_mean": pa.Column(pl.Float32, pa.Check.in_range(0, 255)),
            "pixel_std": pa.Column(pl.Float32, pa.Check.gt(0, error="no constant image")),
        },
        checks=pa.Check(splits_in_order, error=f"splits in the order {', '.join(SPLITS)}"),
        strict=True,
    )


def splits_in_order(data: pa.PolarsData) -> pl.LazyFrame:
    """Check that no split comes before that of the previous row."""
    place = pl.col("split").replace_strict({split: index for index, split in enumerate(SPLITS)}, default=None)
    return data.lazyframe.select(place.diff().fill_null(0) >= 0)
