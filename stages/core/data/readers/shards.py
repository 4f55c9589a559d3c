"""Read Parquet shards that hold files and labels, in the layout that Hugging Face's `datasets` library writes.

Column `image` is a struct of `bytes` and `path`, or the bytes alone; `label` is a text, or a number that the file's
metadata name. A shard's split is the beginning of its name, such as train-00000-of-00002.parquet.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.data.readers.listing import LISTING, SPLIT_NAMES, is_hidden, normalize_label, printable, split_of
from stages.core.files.errors import UserError

BROKEN = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def find(folder: Path) -> list[Path]:
    """Return the shards in a folder, at any depth."""
    return sorted(
        path
        for path in folder.rglob("*.parquet")
        if path.is_file() and not any(is_hidden(part) for part in path.relative_to(folder).parts)
    )


def read(paths: list[Path], folder: Path) -> pl.DataFrame:
    """Return a row for each row of the shards; raise `UserError` for a shard of another layout."""
    return pl.concat(read_shard(path, folder) for path in paths)


def read_shard(path: Path, folder: Path) -> pl.DataFrame:
    """Return the rows of one shard, without the contents of the files."""
    name = printable(path.relative_to(folder))
    try:
        schema = pl.read_parquet_schema(path)
        check_columns(schema, path)
        scan = pl.scan_parquet(path)
        given = pl.col("image").struct.field("path") if is_struct(schema) else pl.lit(None, pl.String)
        optional = [pl.col(key).cast(pl.String) if key in schema else pl.lit(None, pl.String).alias(key) for key in ("split", "group")]  # fmt: skip
        rows = scan.select(given.alias("file"), pl.col("label"), *optional).collect().with_row_index("row")
        labels = name_labels(rows["label"], path)
    except BROKEN as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if labels.null_count():
        raise UserError(f"{path}: row {labels.is_null().arg_max()} has no label")
    named = re.match(r"[a-zA-Z]+", path.name)
    split = SPLIT_NAMES.get(named.group().lower()) if named else None
    splits = [split if value is None else split_of(value, f"{path}: row {row}") for row, value in enumerate(rows["split"])]  # fmt: skip
    return rows.select(
        pl.coalesce(pl.concat_str(pl.lit(f"{name}/"), "file"), pl.format("{}#{}", pl.lit(name), "row")).alias("file"),
        pl.Series("label", [normalize_label(label) for label in labels], pl.String),
        pl.Series("split", splits, pl.String),
        "group",
        pl.lit(name).alias("shard"),
        pl.col("row").cast(pl.Int64),
    ).cast(dict(LISTING))  # type: ignore[arg-type]


def read_contents(rows: pl.DataFrame, folder: Path) -> Iterator[bytes]:
    """Yield the contents of rows that follow each other in shards."""
    for (name,), part in rows.group_by("shard", maintain_order=True):
        path, first = folder / str(name), int(part["row"][0])
        try:
            column = pl.scan_parquet(path).slice(first, int(part["row"][-1]) - first + 1).select("image").collect()
        except BROKEN as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        images = column["image"]
        contents = images.struct.field("bytes") if isinstance(images.dtype, pl.Struct) else images
        for row in part["row"]:
            if (content := contents[row - first]) is None:
                raise UserError(f"{path}: row {row} has no bytes")
            yield content


def check_columns(schema: Any, path: Path) -> None:
    """Raise `UserError` if the shard has not the columns image and label of the right types."""
    image = schema.get("image")
    fields = {field.name: field.dtype for field in image.fields} if isinstance(image, pl.Struct) else {"bytes": image}
    if fields.get("bytes") != pl.Binary or "label" not in schema:
        found = ", ".join(f"{name} {dtype}" for name, dtype in schema.items())[:300]
        raise UserError(f"{path} must have the columns image (a struct of bytes and path, or bytes) and label; found {found}")  # fmt: skip


def is_struct(schema: Any) -> bool:
    """Return whether the column `image` also names the file."""
    return isinstance(schema["image"], pl.Struct) and any(field.name == "path" for field in schema["image"].fields)


def name_labels(labels: pl.Series, path: Path) -> pl.Series:
    """Return the names of labels; numbers without names in the file's metadata become texts."""
    if not labels.dtype.is_integer():
        return labels.cast(pl.String)
    try:
        described = json.loads(pl.read_parquet_metadata(path).get("huggingface", "{}"))
        names = described["info"]["features"]["label"]["names"]
    except (ValueError, KeyError, TypeError):
        return labels.cast(pl.String)
    wrong = labels.filter((labels < 0) | (labels >= len(names)))
    if len(wrong):
        raise UserError(f"{path}: found label {wrong[0]}, but its metadata name {len(names)} classes")
    return pl.Series([None if label is None else str(names[label]) for label in labels], dtype=pl.String)
