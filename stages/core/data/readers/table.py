"""Read a table that names the files of a data set, their labels and, optionally, their splits and groups."""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path, PurePosixPath, PureWindowsPath

import polars as pl

from stages.core.data.readers.listing import LISTING, normalize_label, split_of
from stages.core.files.errors import UserError

NAMES = ["labels.csv", "labels.parquet"]
REQUIRED, OPTIONAL = ["file", "label"], ["split", "group"]
SEPARATORS = ",;\t"


def read(path: Path) -> pl.DataFrame:
    """Return a row for each file that the table names; its other columns are ignored.

    Raises `UserError` with the line for a missing column or value, a split of another name, a file outside of the
    table's folder, and a file with two labels. A file that does not exist becomes a row, and a problem when it is read.
    """
    lines = read_csv(path) if path.suffix == ".csv" else read_parquet(path)
    return pl.DataFrame([*read_rows(lines, path)], LISTING, orient="row")


def read_rows(lines: Iterable[tuple[int, dict[str, str]]], path: Path) -> Iterator[tuple[str | int | None, ...]]:
    """Yield a row of `LISTING` for each file."""
    known: dict[str, tuple[int, tuple[str, str | None, str | None]]] = {}
    for number, values in lines:
        where = f"{path}: line {number}"
        for column in REQUIRED:
            if not values[column].strip():
                raise UserError(f"{where} has no {column}")
        file = relative(values["file"], path.parent, where)
        split, group = values.get("split", "").strip(), values.get("group", "").strip()
        meaning = normalize_label(values["label"].strip()), split_of(split, where) if split else None, group or None
        if file in known:
            first, before = known[file]
            if before != meaning:
                raise UserError(f"{where}: {file} is {show(meaning)}, but in line {first} it is {show(before)}")
            continue
        known[file] = number, meaning
        yield file, *meaning, None, None
    if not known:
        raise UserError(f"{path} names no file")


def show(meaning: tuple[str, str | None, str | None]) -> str:
    """Return a label, a split and a group in words."""
    label, split, group = meaning
    return f"'{label}'" + (f" in split {split}" if split else "") + (f" of group '{group}'" if group else "")


def relative(name: str, folder: Path, where: str) -> str:
    """Return the path of a file below the folder, written with slashes; raise `UserError` if it lies elsewhere."""
    name = name.strip()
    if "\0" in name:
        raise UserError(f"{where}: a file name must not contain a null character")
    path = PurePosixPath(name)
    windows = PureWindowsPath(name)
    if "\\" in name and not os.path.lexists(folder / path):
        path = PurePosixPath(windows.as_posix())
    if path.is_absolute() or windows.drive or ".." in path.parts:
        try:
            path = PurePosixPath((folder / path).resolve().relative_to(folder.resolve()))
        except (ValueError, OSError, RuntimeError):  # A loop of symbolic links is a RuntimeError.
            path = PurePosixPath("..")
        if ".." in path.parts or windows.drive:
            raise UserError(f"{where}: {name} must lie in {folder}, next to the table")
    return path.as_posix()


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number and the values of each line; commas, semicolons or tabs may separate them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be UTF-8: {error}") from None
    header = next((line for line in text.split("\n") if line.strip()), "")
    separator = max(SEPARATORS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines = ([value.strip() for value in line] for line in reader)
    lines = (line for line in lines if any(line))  # Excel ends a table with lines of separators.
    try:
        names = [name.lower() for name in next(lines, [])]
        check_columns(names, path)
        for line in lines:
            if any(line[len(names) :]):
                raise UserError(
                    f"{path}: line {reader.line_num} has {len(line)} values for {len(names)} columns; a value that"
                    f' contains "{separator}" must be quoted'
                )
            yield reader.line_num, dict(zip_longest(names, line[: len(names)], fillvalue=""))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from None


def read_parquet(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each row, from 1, and its values as texts."""
    try:
        rows = pl.read_parquet(path)
        names = [name.strip().lower() for name in rows.columns]
        check_columns(names, path)
        rows.columns = names
        texts = rows.select(pl.col(name).cast(pl.String) for name in [*REQUIRED, *OPTIONAL] if name in rows.columns)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    yield from enumerate(texts.fill_null("").iter_rows(named=True), 1)


def check_columns(names: list[str], path: Path) -> None:
    """Raise `UserError` if a required column is missing or one appears twice."""
    for column in REQUIRED:
        if column not in names:
            found = ", ".join(name for name in names if name)[:200] or "none"
            raise UserError(f"{path} must have the columns file and label, and may have split and group; found {found}")
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        raise UserError(f"{path} has more than one column named {', '.join(repeated)}")
