"""Read data sets of files: find each example's file, label, split and group, and hand out the files' contents.

A data set is a folder. Its layout decides which reader lists it:

- labels.csv or labels.parquet: a table that names the files (`table.py`)
- other .parquet files: shards that hold the files themselves (`shards.py`)
- anything else: folders named after classes (`tree.py`)

To add a layout, write a module with a function that returns a table with the columns of `LISTING`, and add its case to
`list_files`.
"""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from stages.core.data.readers import shards, table, tree
from stages.core.data.readers.listing import LISTING
from stages.core.files.errors import UserError

__all__ = ["LISTING", "list_files", "read_contents"]


def list_files(folder: Path) -> pl.DataFrame:
    """Return a row for each example in a data set's folder, with the columns of `LISTING`.

    Raises `UserError` if the layout is not clear or if there are no examples.
    """
    tables = [folder / name for name in table.NAMES if (folder / name).exists()]
    if len(tables) > 1:
        raise UserError(f"{folder} must have one table, but it has {' and '.join(path.name for path in tables)}")
    if tables:
        listing = table.read(tables[0])
    elif paths := shards.find(folder):
        listing = shards.read(paths, folder)
    else:
        listing = tree.read(folder)
    return listing.sort(pl.col("split").is_null(), "split", "file", maintain_order=True) if tables else listing


def read_contents(rows: pl.DataFrame, folder: Path) -> Iterable[bytes]:
    """Return the contents of these rows' files; raise `OSError` or `UserError` if one cannot be read."""
    if rows["shard"].null_count() == len(rows):
        return ((folder / file).read_bytes() for file in rows["file"])
    return shards.read_contents(rows, folder)
