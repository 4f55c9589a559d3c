"""Read Parquet shards that hold files and labels, in the layout that Hugging Face's `datasets` library writes.

Column `image` is a struct of `bytes` and `path`, or the bytes alone; `label` is a text, or a number that the file's
metadata name. A shard's name tells its split, such as train-00000-of-00002.parquet, or else the folder in which it
lies, such as train/0000.parquet.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.data.readers.listing import (
    LISTING,
    SPLIT_NAMES,
    is_hidden,
    locate,
    normalize_label,
    printable,
    split_of,
)
from stages.core.files.errors import UserError

BROKEN = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
ROWS = 1024  # of which the contents are in memory at once while only the names of the files are wanted


def find(folder: Path) -> list[Path]:
    """Return the shards in a folder, at any depth."""
    return sorted(
        path
        for path in folder.rglob("*.parquet")
        if path.is_file() and not any(is_hidden(part) for part in path.relative_to(folder).parts)
    )


def read(paths: list[Path], folder: Path) -> pl.DataFrame:
    """Return a row for each row of the shards; raise `UserError` for a shard of another layout."""
    splits = [find_split(path, folder) for path in paths]
    if None in splits and any(splits):
        path = paths[splits.index(None)]
        raise UserError(f"{path} has a name without a split, unlike others; allowed: {', '.join(SPLIT_NAMES)}")
    return pl.concat(read_shard(path, folder, split) for path, split in zip(paths, splits, strict=True))


def find_split(path: Path, folder: Path) -> str | None:
    """Return the only split that the name of a shard contains as a word, or else the names of the folders above it."""
    for name in (path.stem, *reversed(path.relative_to(folder).parent.parts)):
        found = {SPLIT_NAMES[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLIT_NAMES}
        if len(found) == 1:
            return found.pop()
    return None


def read_shard(path: Path, folder: Path, split: str | None) -> pl.DataFrame:
    """Return the rows of one shard, without the contents of the files."""
    name = printable(path.relative_to(folder))
    try:
        schema = pl.read_parquet_schema(path)
        check_columns(schema, path)
        columns = ["label", *(key for key in ("split", "group") if key in schema)]
        rows = pl.read_parquet(path, columns=columns)
        rows = rows.with_columns(pl.col(columns[1:]).cast(pl.String), file=file_names(path, schema, len(rows)))
        labels = name_labels(rows["label"], path)
    except BROKEN as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if labels.null_count():
        raise UserError(f"{path}: row {labels.is_null().arg_max()} has no label")
    splits = [split] * len(rows)
    if "split" in rows.columns:
        splits = [value and split_of(value, f"{path}: row {row}") for row, value in enumerate(rows["split"])]
    number = pl.int_range(pl.len())
    given = pl.concat_str(pl.lit(f"{name}/"), "file")
    unnamed = pl.format("{}#{}", pl.lit(name), number)
    listing = rows.select(
        # Some writers give all pictures the same path.
        pl.coalesce(pl.when(pl.col("file").is_unique()).then(given), unnamed).alias("file"),
        pl.Series("label", [normalize_label(label) for label in labels], pl.String),
        pl.Series("split", splits, pl.String),
        pl.col("group") if "group" in rows.columns else pl.lit(None, pl.String).alias("group"),
        pl.lit(name).alias("shard"),
        number.cast(pl.Int64).alias("row"),
    )
    return listing.select(pl.col(column).cast(dtype) for column, dtype in LISTING.items())


def file_names(path: Path, schema: Any, rows: int) -> pl.Series:
    """Return the names that a shard gives to its files, null where it gives none."""
    if not is_struct(schema):
        return pl.Series("file", [None] * rows, pl.String)
    # Parquet cannot read a part of a struct alone, and the contents of all files may be larger than the memory.
    scan = pl.scan_parquet(path).select(pl.col("image").struct.field("path").cast(pl.String))
    parts = [scan.slice(start, ROWS).collect()["path"] for start in range(0, rows, ROWS)]
    return pl.concat(parts) if parts else pl.Series("path", [], pl.String)


def open_contents(rows: pl.DataFrame, folder: Path) -> Iterator[Callable[[], bytes]]:
    """Yield, for rows that follow each other in shards, a function that returns the content or raises `UserError`."""
    for (name,), part in rows.group_by("shard", maintain_order=True):
        path, first = locate(folder, str(name)), int(part["row"][0])
        try:
            column = pl.scan_parquet(path).slice(first, int(part["row"][-1]) - first + 1).select("image").collect()
        except BROKEN as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        images = column["image"]
        contents = images.struct.field("bytes") if isinstance(images.dtype, pl.Struct) else images
        for file, row in part.select("file", "row").iter_rows():
            yield partial(content_or_error, contents[row - first] if row - first < len(contents) else None, file)


def content_or_error(content: bytes | None, file: str) -> bytes:
    """Return the content of a file; raise `UserError` if the shard has none."""
    if content is None:
        raise UserError(f"{file} has no bytes in its shard")
    return content


def check_columns(schema: Any, path: Path) -> None:
    """Raise `UserError` if the shard has not the columns image and label of the right types."""
    image = schema.get("image")
    fields = {field.name: field.dtype for field in image.fields} if isinstance(image, pl.Struct) else {"bytes": image}
    if fields.get("bytes") != pl.Binary or "label" not in schema:
        found = ", ".join(f"{name} {dtype}" for name, dtype in schema.items())[:300]
        needed = "the columns image (a struct of bytes and path, or bytes) and label"
        raise UserError(f"{path} must have {needed}; found {found}")


def is_struct(schema: Any) -> bool:
    """Return whether the column `image` also names the file."""
    return isinstance(schema["image"], pl.Struct) and any(field.name == "path" for field in schema["image"].fields)


def name_labels(labels: pl.Series, path: Path) -> pl.Series:
    """Return the names of labels; numbers without names in the file's metadata become texts."""
    if not labels.dtype.is_integer():
        return labels.cast(pl.String)
    try:
        described = json.loads(pl.read_parquet_metadata(path).get("huggingface", "{}"))
        names = [*map(str, described["info"]["features"]["label"]["names"])]
    except (ValueError, KeyError, TypeError):
        return labels.cast(pl.String)
    wrong = labels.filter((labels < 0) | (labels >= len(names)))
    if len(wrong):
        raise UserError(f"{path}: found label {wrong[0]}, but its metadata name {len(names)} classes")
    return pl.Series([None if label is None else names[label] for label in labels], dtype=pl.String)
