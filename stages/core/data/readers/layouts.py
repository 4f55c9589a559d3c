"""List the files of a data set, whatever its layout, and hand out their contents.

A data set is a folder. Its layout decides which reader lists it:

- labels.csv or labels.parquet: a table that names the files (`table.py`)
- .parquet files of another name: shards that hold the files themselves (`shards.py`)
- anything else: folders named after classes (`tree.py`)

To add a layout, write a module with a function that returns a table with the columns of `LISTING`, and add its case to
`list_files`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from stages.core.data.readers import shards, table, tree
from stages.core.data.readers.listing import locate
from stages.core.files.errors import UserError


def list_files(folder: Path, is_example: Callable[[bytes, str], bool]) -> pl.DataFrame:
    """Return a row for each example in a data set's folder, with the columns of `LISTING`.

    `is_example` recognizes an example by the beginning of its content and its name. Folders of classes may hold other
    files, which this function does not leave out, because only their contents tell. Raises `UserError` if the layout is
    not clear or if there are no examples.
    """
    tables = [folder / name for name in table.NAMES if (folder / name).exists()]
    if len(tables) > 1:
        raise UserError(f"{folder} must have one table, but it has {' and '.join(path.name for path in tables)}")
    if tables:
        listing = table.read(tables[0])
    elif paths := shards.find(folder):
        listing = shards.read(paths, folder)
    else:
        listing = tree.read(folder, is_example)
    return listing.sort(pl.col("split").is_null(), "split", "file", maintain_order=True) if tables else listing


def open_contents(rows: pl.DataFrame, folder: Path) -> Iterator[Callable[[], bytes]]:
    """Yield a function for each row that returns its content; it raises `OSError` or `UserError` if that fails."""
    if rows["shard"].null_count() == len(rows):
        yield from (locate(folder, name).read_bytes for name in rows["file"])
    else:
        yield from shards.open_contents(rows, folder)
