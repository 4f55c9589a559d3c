"""Read folders named after classes, at most one level below folders named after splits.

CLASS/file and train/CLASS/file beside test/CLASS/file are the layouts of torchvision's ImageFolder and of most data
sets that people make. Files may lie at any depth below the folder of their class.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from stages.core.data.readers.listing import LISTING, SPLIT_NAMES, is_hidden, normalize_label, printable
from stages.core.files.errors import UserError

SHOWN = 5  # files named in a message
START = 32  # bytes by which an example is recognized

IsExample = Callable[[bytes, str], bool]


def read(folder: Path, is_example: IsExample) -> pl.DataFrame:
    """Return a row for each file below a folder of a class; raise `UserError` if it is not clear what the classes are.

    A folder `train` means a split if every folder beside it is named after a split, else a class called "train".
    Beside the folders of the classes, there may be any files but examples.
    """
    tops = visible_folders(folder)
    splits = [SPLIT_NAMES.get(top.name.lower()) for top in tops]
    if not tops:
        raise UserError(
            f"{folder} holds no data set: it must have a folder for each class, labels.csv or labels.parquet, Parquet"
            " shards, four IDX files, or a dataset.yaml with `sources`"
        )
    refuse_loose_files(folder, folder, is_example)
    if all(splits):
        check_splits(tops, [split for split in splits if split])
        for top in tops:
            refuse_loose_files(top, folder, is_example)
        rows = [row for top, split in zip(tops, splits, strict=True) for row in read_classes(top, split, folder)]
    else:
        check_classes(tops)
        rows = [*read_classes(folder, None, folder)]
    listing = pl.DataFrame(rows, LISTING, orient="row")
    if listing.is_empty():
        raise UserError(f"{folder}: no folder of a class holds a file")
    return listing


def read_classes(folder: Path, split: str | None, root: Path) -> Iterator[tuple[str | int | None, ...]]:
    """Yield the rows of the files below the folders of the classes in `folder`."""
    for top in visible_folders(folder):
        label, found = normalize_label(printable(top.name)), False
        for path in walk(top):
            found = True
            yield printable(path.relative_to(root)), label, split, None, None, None
        if not found:
            raise UserError(f"{printable(top)} holds no file; each class needs examples: add some or remove the folder")


def check_splits(tops: list[Path], splits: list[str]) -> None:
    """Raise `UserError` if two folders are the same split, or if there is no training split."""
    for split in set(splits):
        same = [str(top) for top, of in zip(tops, splits, strict=True) if of == split]
        if len(same) > 1:
            raise UserError(f"{' and '.join(same)} are both the {split} split; keep one of them")
    if "train" not in splits:
        raise UserError(f"{tops[0].parent} has a folder '{tops[0].name}', but no folder 'train'")


def check_classes(tops: list[Path]) -> None:
    """Raise `UserError` if the folders of a training and of another split lie beside folders that are no splits."""
    splits = {split: top.name for top in tops if (split := SPLIT_NAMES.get(top.name.lower()))}
    if "train" in splits and len(splits) > 1:
        other = next(printable(top.name) for top in tops if top.name.lower() not in SPLIT_NAMES)
        raise UserError(
            f"{tops[0].parent} has the folders {' and '.join(sorted(splits.values()))}, which are splits, beside"
            f" '{other}', which is none; move '{other}' elsewhere, or into a split if it is a class"
        )


def refuse_loose_files(folder: Path, root: Path, is_example: IsExample) -> None:
    """Raise `UserError` if examples lie where only folders of classes belong."""
    loose = [
        printable(path.relative_to(root))
        for path in sorted(folder.iterdir())
        if path.is_file() and not is_hidden(path.name) and is_example(read_start(path), path.name)
    ]
    if loose:
        more = f" and {len(loose) - SHOWN:,} more" if len(loose) > SHOWN else ""
        names = ", ".join(loose[:SHOWN])
        raise UserError(f"{root}: {names}{more} must lie in a folder named after a class, such as {folder}/CLASS")


def read_start(path: Path) -> bytes:
    """Return the beginning of a file."""
    with path.open("rb") as file:
        return file.read(START)


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder that are not hidden, in a stable order.

    Symbolic links are followed, each folder once. Dangling ones are yielded, because they stand for missing files;
    pipes and devices are not. Raises `OSError` for a folder that cannot be read.
    """

    def give_up(error: OSError) -> None:
        raise error

    seen = set()
    for parent, folders, names in os.walk(folder, onerror=give_up, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        paths = (Path(parent, name) for name in sorted(names) if not is_hidden(name))
        yield from (path for path in paths if path.is_file() or not path.exists())
