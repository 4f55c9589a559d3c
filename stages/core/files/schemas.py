"""Define pandera schemas for the tables about a model; those for the data are in data/schemas.py."""

import pandera.polars as pa
import polars as pl


def history() -> pa.DataFrameSchema:
    """Return the schema of the table with one row per epoch, in order."""
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
    """Return the schema of the table with one row per test example, in their order."""
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


def label_errors(num_classes: int) -> pa.DataFrameSchema:
    """Return the schema of the table of likely wrong labels, those with the least probable label first."""
    label, share = pa.Check.in_range(0, num_classes - 1), pa.Check.in_range(0, 1)
    return pa.DataFrameSchema(
        {
            "id": pa.Column(pl.Int64, pa.Check.ge(0), unique=True),  # in the table of examples
            "split": pa.Column(pl.String, pa.Check.isin(["validation", "test"])),
            "label": pa.Column(pl.Int64, label),
            "suggested": pa.Column(pl.Int64, label),
            "label_confidence": pa.Column(pl.Float64, share),
            "suggested_confidence": pa.Column(pl.Float64, share),
        },
        checks=pa.Check(suggests_another_class, error="the suggested class is not the label"),
        strict=True,
    )


def per_class() -> pa.DataFrameSchema:
    """Return the schema of the table with one row per class of the test split."""
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


def suggests_another_class(data: pa.PolarsData) -> pl.LazyFrame:
    """Check that the suggested class is not the label."""
    return data.lazyframe.select(pl.col("suggested") != pl.col("label"))


def finite_and_not_negative(data: pa.PolarsData) -> pl.LazyFrame:
    """Check that each value is finite and not negative."""
    return data.lazyframe.select(pl.col(data.key).is_finite() & (pl.col(data.key) >= 0))


def counts_from_one(data: pa.PolarsData) -> pl.LazyFrame:
    """Check that the values number the rows from 1."""
    return data.lazyframe.select(pl.col(data.key) == pl.int_range(1, pl.len() + 1))


def counts_from_zero(data: pa.PolarsData) -> pl.LazyFrame:
    """Check that the values number the rows from 0."""
    return data.lazyframe.select(pl.col(data.key) == pl.int_range(pl.len()))
