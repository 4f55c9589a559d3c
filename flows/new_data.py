"""Copy a folder of pictures to data/NAME and let DVC track it: `python -m flows.new_data NAME FOLDER`.

`make new-data NAME=flowers FROM=~/flowers` calls this. Nothing is left behind if the copy fails, is interrupted or is
not a data set; the check is the one of stage `download`.
"""

import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
from pydantic import TypeAdapter, ValidationError
from rich.progress import Progress

from stages.core.config.params import Params, load_dataset, load_params
from stages.core.config.section import Name
from stages.core.data import idx
from stages.core.data.config import Dataset, UrlSource
from stages.core.data.raw import check_readable, index_classes, list_raw_files, read_arrays
from stages.core.data.readers.layouts import list_files
from stages.core.data.readers.listing import is_hidden
from stages.core.data.readers.table import NAMES as TABLES
from stages.core.data.readers.tree import walk
from stages.core.data.sources import fetch
from stages.core.data.splits import shorten
from stages.core.examples import image
from stages.core.files.atomic import remove, replacing
from stages.core.files.errors import UserError, report_errors
from stages.core.files.layout import DATA, dataset_file

MANY = 100  # entries of a folder, from which on DVC tracks it as a whole


def add_data(name: str, source: Path, params: Params) -> list[str]:
    """Copy the data set in `source` to data/NAME, check it, add it to DVC, and return a description of it in lines."""
    target = check_name(name)
    if not source.is_dir():
        what = "is not a folder; unpack an archive first" if source.exists() else "does not exist"
        raise UserError(f"{source} {what}")
    if target.resolve().is_relative_to(source):
        raise UserError(f"{source} holds this project; name the folder that holds only the pictures")
    files = find_files(source)
    if not idx.is_idx(source):
        list_files(source, image.is_example)  # An unclear layout is reported before anything is copied.
    with replacing(target) as partial:
        copy_files(files, source, partial)
        try:
            lines = describe(partial, load_dataset(params.model_copy(update={"dataset": partial.name})))
        except UserError as error:
            raise UserError(str(error).replace(str(partial), str(source))) from None
    track(target)
    return [*lines, *describe_links(files, source)]


def check_name(name: str) -> Path:
    """Return the folder of the new data set; raise `UserError` if it exists, or if it cannot have this name."""
    try:
        target = dataset_file(TypeAdapter(Name).validate_python(name)).parent
    except ValidationError:
        raise UserError(f"NAME must be at most 64 letters, digits, '_' and '-', found '{name}'") from None
    if target.exists():
        tracked = target if target.with_suffix(".dvc").exists() else f"{target}/*/"
        raise UserError(f"{target} exists already; to add pictures, copy them into it, then run `dvc add {tracked}`")
    return target


def find_files(source: Path) -> list[Path]:
    """Return the files that a person put there, but not those of DVC, which are of no use in another project.

    Raises `UserError` for a link to a folder, which may lead anywhere, even back to a folder above it.
    """
    for path in source.rglob("*"):
        if path.is_symlink() and path.is_dir() and not any(map(is_hidden, path.relative_to(source).parts)):
            raise UserError(f"{path} is a link to a folder; `cp -rL` makes a copy without links, which you can give")
    return [file for file in walk(source) if file.suffix != ".dvc"]


def copy_files(files: list[Path], source: Path, target: Path) -> None:
    """Copy files below `source` to the same places below `target`; the contents of linked files are copied."""
    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        for file in progress.track(files, description="Copying"):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(file, copy)
            except OSError as error:
                if error.filename != str(file):
                    raise
                raise UserError(f"{file} cannot be copied: {error.strerror}") from error


def track(target: Path) -> None:
    """Add the data set to DVC; if that fails or is interrupted, remove the copy and raise `UserError`."""
    done = None
    try:
        done = subprocess.run([sys.executable, "-m", "dvc", "add", *map(str, choose_tracked(target))], check=False)
    finally:
        if done is None or done.returncode:
            remove(target)
            remove(target.with_suffix(".dvc"))
    if done.returncode:
        raise UserError(f"DVC did not add {target}, see above; the copy was removed again")


def choose_tracked(folder: Path) -> list[Path]:
    """Return what DVC tracks: all entries of the folder but dataset.yaml, which is for git, or else the whole folder.

    DVC writes a file for each, so a folder with many entries is better tracked as one.
    """
    entries = sorted(path for path in folder.iterdir() if path.name != dataset_file("").name)
    return entries if len(entries) < MANY else [folder]


def describe(folder: Path, dataset: Dataset) -> list[str]:
    """Return what a data set's folder holds, in lines; raise `UserError` if stage `download` or `normalize` would."""
    layout = "a folder for each class"
    if idx.is_idx(folder):
        layout = "IDX files"
        with TemporaryDirectory() as scratch:
            fetch(UrlSource(kind="url", url=str(folder)), Path(scratch))
            table, classes, *_ = read_arrays(Path(scratch), dataset)
        table = table.with_columns(pl.col("label").replace_strict(dict(enumerate(classes)), return_dtype=pl.String))
    else:
        table = list_raw_files(folder)
        if names := [name for name in TABLES if (folder / name).exists()]:
            layout = names[0]
        elif table["shard"].count():
            layout = "Parquet shards"
        classes = index_classes(table, dataset, folder)
        check_readable(table, folder)
    return [f"layout: {layout}", *describe_classes(table, classes), *describe_pictures(table, dataset)]


def describe_classes(table: pl.DataFrame, classes: list[str]) -> Iterator[str]:
    """Yield how many examples each class and each split has."""
    counts = dict(table["label"].value_counts().iter_rows())
    yield f"classes: {len(classes)}, of {len(table):,} examples"
    yield from shorten([f"  {name}: {counts.get(name, 0):,}" for name in classes])
    yield "splits: " + (describe_counts(table["split"].drop_nulls()) or "none given, so they will be held out")


def describe_counts(names: pl.Series) -> str:
    """Return how often each name occurs, the most frequent one first."""
    counts = names.value_counts(sort=True, name="count").sort("count", names.name, descending=[True, False])
    return ", ".join(f"{count:,} {name}" for name, count in counts.iter_rows())


def describe_pictures(table: pl.DataFrame, dataset: Dataset) -> Iterator[str]:
    """Yield the sizes and modes of the pictures, what they become, and their problems."""
    known = table.drop_nulls("width")
    for side in ("width", "height"):
        low, high = (known[side].quantile(end) for end in (0.0, 1.0))
        yield f"{side}: {low:.0f}" + (f" to {high:.0f}" if high != low else "") + " pixels"
    yield "modes: " + describe_counts(known["mode"])
    (planes, height, width), _ = image.choose_shape(table, dataset)
    yield f"inputs: {height}x{width} pixels" + (
        ", grey" if planes == 1 else " in colour, for which recipe `photos` is made"
    )
    problems = table.drop_nulls("problem")
    yield f"files that cannot be read: {len(problems):,}"
    yield from shorten([f"  {file} {problem}" for file, problem in problems.select("file", "problem").iter_rows()])


def describe_links(files: list[Path], source: Path) -> list[str]:
    """Return a line about the files that are links out of the folder, if there are any."""
    outside = [file for file in files if file.is_symlink() and not file.resolve().is_relative_to(source)]
    return (
        [f"links to files elsewhere, whose contents were copied: {len(outside):,}, first {outside[0]}"]
        if outside
        else []
    )


def main() -> None:
    parser = ArgumentParser("python -m flows.new_data", description=__doc__)
    parser.add_argument("name", help="name of the data set, the folder data/NAME")
    parser.add_argument("folder", type=Path, help="folder with a folder for each class, or with another known layout")
    arguments = parser.parse_args()
    with report_errors("new-data"):
        lines = add_data(arguments.name, arguments.folder.expanduser().resolve(), load_params())
        print(f"new-data: {DATA / arguments.name}, a copy of {arguments.folder}", *lines, sep="\n  ")
        print(f"next: dvc exp run -S dataset={arguments.name}, then make demo")


if __name__ == "__main__":
    main()
