"""Pack the files of a data set into a few large Parquet shards.

DVC is slow with an output of many files: it links, checks and uploads each of them.
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
from rich.progress import Progress

from stages.core.data.raw import list_raw_files
from stages.core.data.readers.layouts import open_contents
from stages.core.files.errors import UserError

SHARD_BYTES = 1 << 28  # of the files in a shard; about three times as much is in memory while it is written
GROUP_BYTES = 1 << 23  # of the files in a row group, the least that a reader decodes
MAX_FILE_BYTES = 1 << 28
ROWS = 32  # read at a time


def pack(source: Path, folder: Path) -> None:
    """Write shards with all examples that the readers find in `source` to the new folder `folder`."""
    listing = list_raw_files(source)
    if listing["label"].n_unique() == 1:
        label = listing["label"][0]
        raise UserError(f"it has only the class '{label}'; if its folders are the classes, write `folder: {label}`")
    folder.mkdir()
    parts: list[pl.DataFrame] = []
    size, number = 0, 0
    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        for rows in progress.track(listing.iter_slices(ROWS), -(-len(listing) // ROWS), description="Packing"):
            part = pl.DataFrame([rows["file"], pl.Series("bytes", [*read(rows, source)], pl.Binary)])
            parts.append(part.with_columns(rows["label"], rows["split"], rows["group"]))
            size += int(part["bytes"].bin.size().sum())
            if size >= SHARD_BYTES:
                write_shard(parts, size, folder / f"{number:05}.parquet")
                parts, size, number = [], 0, number + 1
    if parts:
        write_shard(parts, size, folder / f"{number:05}.parquet")


def read(rows: pl.DataFrame, source: Path) -> Iterator[bytes]:
    """Yield the contents of these rows' files, nothing for a missing one that a table names; it is a problem later."""
    for name, read_content in zip(rows["file"], open_contents(rows, source), strict=True):
        try:
            content = read_content()
        except FileNotFoundError:
            content = b""
        if len(content) > MAX_FILE_BYTES:
            raise UserError(f"{name} has {len(content):,} bytes, allowed: at most {MAX_FILE_BYTES:,} for an example")
        yield content


def write_shard(parts: list[pl.DataFrame], size: int, path: Path) -> None:
    """Write a shard in the layout that `readers/shards.py` reads."""
    rows = pl.concat(parts)
    parts.clear()
    table = rows.select(pl.struct("bytes", path="file").alias("image"), "label", "split", "group")
    buffer = io.BytesIO()  # Polars does not distinguish a full disk from other errors.
    table.write_parquet(
        buffer,
        compression="uncompressed",
        statistics=False,
        row_group_size=max(1, len(rows) * GROUP_BYTES // max(size, 1)),
    )
    path.write_bytes(buffer.getbuffer())
