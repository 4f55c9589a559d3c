"""Define what every reader returns, and which files a person did not mean as examples."""

import re
import unicodedata
from pathlib import Path, PurePath

import polars as pl

from stages.core.files.errors import UserError

LISTING = pl.Schema({
    "file": pl.String,  # the path below the data set's folder, or the name that a shard gives it
    "label": pl.String,  # the class's name, in Unicode's form NFC
    "split": pl.String,  # train, validation, test; null where the data set does not say
    "group": pl.String,  # examples of one group stay in one split; null if it is a group of its own
    "shard": pl.String,  # the Parquet file that holds the content, below the data set's folder; null for a file
    "row": pl.Int64,  # in that shard
})  # fmt: skip

SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
# macOS, Windows and network drives create these.
HIDDEN = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found", "icon\r"}


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name was created by a program for itself, not put there by a person."""
    return name.startswith(".") or name.lower() in HIDDEN


def normalize_label(label: str) -> str:
    """Return the label in Unicode's composed form, so that one name typed on two systems is one class."""
    return unicodedata.normalize("NFC", label)


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return a key that sorts names as people count: class 9 comes before class 10."""
    # Of two whole numbers, the one with more digits is larger. `int` would refuse thousands of them.
    parts = (part.lstrip("0") if part.isdecimal() else part for part in re.findall(r"\d+|\D+", name))
    keys = ((0, len(part), part) if part.isdecimal() or not part else (1, 0, part.casefold()) for part in parts)
    return [*keys], name


def split_of(name: str, source: str) -> str:
    """Return the split that a table calls `name`; raise `UserError` that names `source` for any other text."""
    if split := SPLIT_NAMES.get(name.strip().lower()):
        return split
    raise UserError(f"{source}: split must be one of {', '.join(SPLIT_NAMES)}, found '{name}'")


def printable(path: PurePath | str) -> str:
    """Return a path with the bytes that are not UTF-8 escaped, because a table cannot hold them."""
    name = path.as_posix() if isinstance(path, PurePath) else path
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def locate(folder: Path, name: str) -> Path:
    """Return the path of the file in the folder that `printable` calls `name`."""
    path = folder / name
    if "\\x" not in name or path.exists():
        return path
    return folder / re.sub(r"\\x([89a-f][0-9a-f])", lambda match: chr(0xDC00 + int(match[1], 16)), name)
