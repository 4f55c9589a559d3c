"""State the rules for the tables about the data set, as pandera schemas."""

import pandera.polars as pa
import polars as pl

from stages.core.examples.columns import HEADER, INPUT

SPLITS = ["train", "validation", "test"]
SHA256 = pa.Check.str_matches("^[0-9a-f]{64}$")


def raw_labels(num_classes: int) -> pa.DataFrameSchema:
    """Return the schema of the labels as they were delivered."""
    return pa.DataFrameSchema({"label": pa.Column(pl.UInt8, pa.Check.in_range(0, num_classes - 1))}, strict=True)


def files() -> pa.DataFrameSchema:
    """Return the schema of the table with one row for each file of a data set, as it was found."""
    return pa.DataFrameSchema(
        {
            "file": pa.Column(pl.String, unique=True),
            "label": pa.Column(pl.String),
            "split": pa.Column(pl.String, pa.Check.isin(SPLITS), nullable=True),
            "group": pa.Column(pl.String, nullable=True),
            "shard": pa.Column(pl.String, nullable=True),
            "row": pa.Column(pl.Int64, nullable=True),
            "sha256": pa.Column(pl.String, SHA256, nullable=True),  # null if the file cannot be read
            "problem": pa.Column(pl.String, nullable=True),
            **HEADER,
        },
        strict=True,
    )


def examples(num_classes: int) -> pa.DataFrameSchema:
    """Return the schema of the table with one row for each example: those of the splits in order, then the problems."""
    return pa.DataFrameSchema(
        {
            "id": pa.Column(pl.Int64, unique=True),
            "split": pa.Column(pl.String, pa.Check.isin(SPLITS), nullable=True),
            "label": pa.Column(pl.Int64, pa.Check.in_range(0, num_classes - 1)),
            "file": pa.Column(pl.String),
            "group": pa.Column(pl.String, nullable=True),
            "sha256": pa.Column(pl.String, SHA256, nullable=True),  # of the file, or of the input if there is none
            "input_sha256": pa.Column(pl.String, SHA256, nullable=True),
            "alike": pa.Column(pl.Int64, nullable=True),  # the id of an example in another split that looks the same
            "problem": pa.Column(pl.String, nullable=True),
            **HEADER,
            **INPUT,
        },
        checks=[
            pa.Check(splits_in_order, error=f"splits in the order {', '.join(SPLITS)}, then problems"),
            pa.Check(left_out, error="an example has either a split or a problem"),
        ],
        strict=True,
    )


def splits_in_order(data: pa.PolarsData) -> pl.LazyFrame:
    """Compare each row's split with the row before."""
    order = {split: index for index, split in enumerate(SPLITS)}
    position = pl.col("split").replace_strict(order, default=len(SPLITS), return_dtype=pl.Int64)
    return data.lazyframe.select(position.diff().fill_null(0) >= 0)


def left_out(data: pa.PolarsData) -> pl.LazyFrame:
    """Check that exactly the examples with a problem are in no split."""
    return data.lazyframe.select(pl.col("split").is_null() == pl.col("problem").is_not_null())
