"""Read a data set as it was delivered, as arrays or as files, into one table and one array of inputs.

Stage `download` calls `list_raw_files` where the data set consists of files; stage `normalize` calls `read_arrays` or
`read_files`.
"""

import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.progress import Progress

from stages.core.data import idx, schemas
from stages.core.data.config import Dataset
from stages.core.data.readers.layouts import list_files, open_contents
from stages.core.data.readers.listing import natural, normalize_label
from stages.core.data.readers.table import NAMES as TABLES
from stages.core.examples import image
from stages.core.examples.columns import HEADER
from stages.core.examples.spec import Opening
from stages.core.files.arrays import map_array, write_array
from stages.core.files.errors import UserError
from stages.core.files.tables import validate

Result = TypeVar("Result")

CHUNK = 32  # files that one thread reads at a time
SHARD_CHUNK = 256  # rows of shards; reading a few takes as long as reading hundreds
CPUS = os.cpu_count() or 1
AHEAD = 2 * CPUS  # chunks that may be done before an earlier one is


class Raw(NamedTuple):
    """Hold all examples of a data set in the order in which they were delivered."""

    # The columns file, label (an index of `classes`), split, group, sha256, problem and those of a header.
    examples: pl.DataFrame
    classes: list[str]
    inputs: "Joined"  # all 0 where there is a problem
    opening: Opening


class Joined:
    """Hold arrays of one dtype and shape per example, mapped from files, as if they were one."""

    def __init__(self, arrays: Sequence[NDArray[np.generic]]) -> None:
        self.arrays = arrays
        self.ends = np.cumsum([len(array) for array in arrays])
        self.shape = tuple(int(side) for side in arrays[0].shape[1:])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, rows_N: NDArray[np.intp]) -> NDArray[np.generic]:
        """Return the examples of these rows, in their order."""
        found = np.empty((len(rows_N), *self.shape), self.arrays[0].dtype)
        of_array = np.searchsorted(self.ends, rows_N, side="right")
        for index, array in enumerate(self.arrays):
            mine = of_array == index
            found[mine] = array[rows_N[mine] - (self.ends[index] - len(array))]
        return found

    def chunks(self, rows_N: NDArray[np.intp], size: int) -> Iterator[NDArray[np.generic]]:
        """Yield the examples of these rows in parts, because all of them may be larger than the memory."""
        for start in range(0, len(rows_N), size):
            yield self[rows_N[start : start + size]]


def list_raw_files(folder: Path) -> pl.DataFrame:
    """Return a row for each file of the data set in a folder, with its checksum and what its header says.

    In folders of classes, files that neither are pictures nor are named like them are left out. Raises `UserError` if
    the layout is not clear or if nothing is left of a class.
    """
    listing = list_files(folder, image.is_example)
    records = [*in_chunks(lambda rows: inspect_rows(rows, folder), listing, "Reading headers")]
    header = {name: column.dtype.type for name, column in HEADER.items()}
    columns = {"sha256": pl.String, "problem": pl.String, **header, "is_example": pl.Boolean}
    table = listing.hstack(pl.DataFrame(records, columns, orient="row"))
    is_tree = listing["shard"].null_count() == len(listing) and not any((folder / name).exists() for name in TABLES)
    if is_tree:
        check_classes(table, folder)
        table = table.filter("is_example")
    return table.drop("is_example")


def check_classes(table: pl.DataFrame, folder: Path) -> None:
    """Raise `UserError` if the folder of a class holds files, but no example."""
    empty = table.group_by("split", "label", maintain_order=True).agg(
        pl.col("is_example").any(), pl.col("file").first()
    )
    for split, label, _, file in empty.filter(~pl.col("is_example")).iter_rows():
        where = f"'{label}'" + (f" of split {split}" if split else "")
        raise UserError(f"{folder}: no file of class {where} is an example; the first is {file}")


def inspect_rows(rows: pl.DataFrame, folder: Path) -> list[dict[str, Any]]:
    """Return the checksum, the problem and the header of each of these files."""
    records = []
    for name, read in zip(rows["file"], open_contents(rows, folder), strict=True):
        record: dict[str, Any] = {"is_example": True, "problem": None}
        try:
            content = read()
            record["is_example"] = image.is_example(content[:32], name)
            record["sha256"] = hashlib.sha256(content).hexdigest()
            record |= image.inspect(content, name)
        except (UserError, OSError) as error:
            record["problem"] = explain(error, name)
        records.append(record)
    return records


def explain(error: Exception, name: str) -> str:
    """Return what is wrong with a file, without its name, which stands beside it."""
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return text.removeprefix(f"{name} ")


def read_arrays(folder: Path, dataset: Dataset) -> Raw:
    """Return the data set in four IDX files; raise `UserError` if they do not fit together."""
    parts = {split: idx.read_raw(folder, split) for split in idx.FILES}
    shapes = {split: part.inputs.shape[1:] for split, part in parts.items()}
    if shapes["train"] != shapes["test"]:
        raise UserError(f"{folder}: training images have the shape {shapes['train']}, test images {shapes['test']}")
    highest = max(int(part.labels.max()) for part in parts.values())
    classes = dataset.classes or [str(label) for label in range(highest + 1)]
    for part in parts.values():
        validate(pl.DataFrame({"label": part.labels}), schemas.raw_labels(len(classes)), folder)
    inputs = Joined([part.inputs for part in parts.values()])
    planes, height, width = inputs.shape
    opening = image.opening_of_arrays(inputs.shape, dataset, str(folder / parts["train"].file))
    tables = [
        pl.DataFrame({"label": part.labels.astype(np.int64)}).with_columns(
            file=pl.lit(part.file),
            split=pl.lit(split),
            group=pl.lit(None, pl.String),
            sha256=pl.lit(None, pl.String),  # of the inputs themselves, which are checked one by one later
            problem=pl.lit(None, pl.String),
            width=pl.lit(width, pl.Int64),
            height=pl.lit(height, pl.Int64),
            mode=pl.lit("L" if planes == 1 else "RGB"),
            grey=pl.lit(planes == 1),
        )
        for split, part in parts.items()
    ]
    return Raw(pl.concat(tables), classes, inputs, opening)


def read_files(table: pl.DataFrame, root: Path, dataset: Dataset, scratch: Path, known: "Known") -> Raw:
    """Return the data set of the files in a table, as `list_raw_files` returns it; write the inputs to `scratch`.

    Files that have not changed since the last run, and whose input is in `known`, are not decoded again.
    """
    classes = index_classes(table, dataset, root)
    check_readable(table, root)
    shape, opening = image.choose_shape(table, dataset)
    problems: list[str | None] = []

    def decode(rows: pl.DataFrame) -> list[tuple[NDArray[np.uint8], str | None]]:
        return [
            open_row(row, read, shape, opening, known)
            for row, read in zip(rows.iter_rows(named=True), open_contents(rows, root), strict=True)
        ]

    def inputs() -> Iterator[NDArray[np.uint8]]:
        for input_CHW, problem in in_chunks(decode, table, "Decoding"):
            problems.append(problem)
            yield input_CHW

    write_array(scratch, (len(table), *shape), np.uint8, inputs())
    labels = table["label"].replace_strict({name: label for label, name in enumerate(classes)}, return_dtype=pl.Int64)
    problem = pl.Series("problem", problems, pl.String)
    examples = table.select("file", labels, "split", "group", "sha256", problem, *HEADER)
    return Raw(examples, classes, Joined([map_array(scratch, (len(table), *shape), np.uint8)]), opening)


class Known(NamedTuple):
    """Hold inputs that an earlier run has decoded with the same settings."""

    rows: dict[str, tuple[NDArray[np.generic], int]]  # by the checksum of the file: the array and the row
    shape: tuple[int, ...]
    opening: Opening | None

    def find(self, checksum: str, shape: tuple[int, ...], opening: Opening) -> NDArray[np.uint8] | None:
        """Return the input of a file, if it was decoded in the same way."""
        if (shape, opening) != (self.shape, self.opening) or checksum not in self.rows:
            return None
        array, row = self.rows[checksum]
        return np.asarray(array[row], np.uint8)


def open_row(
    row: dict[str, Any], read: Callable[[], bytes], shape: tuple[int, int, int], opening: Opening, known: Known
) -> tuple[NDArray[np.uint8], str | None]:
    """Return the input of a file and None, or an empty input and the problem."""
    name, problem = row["file"], row["problem"]
    if problem is None:
        try:
            if (input_CHW := known.find(row["sha256"], shape, opening)) is not None:
                return input_CHW, None
            content = read()
            if hashlib.sha256(content).hexdigest() != row["sha256"]:
                raise UserError(f"{name} has changed since stage download read it; `dvc repro` reads it again")
            return image.open_picture(content, name, shape, opening), None
        except (UserError, OSError) as error:
            problem = explain(error, name)
    return np.zeros(shape, np.uint8), problem


def index_classes(table: pl.DataFrame, dataset: Dataset, root: Path) -> list[str]:
    """Return the names of labels 0, 1, ...: as dataset.yaml lists them, or else all in the order of `natural`."""
    found = sorted(table["label"].unique(), key=natural)
    if len(found) < 2:
        raise UserError(f"{root} must have at least two classes, found {', '.join(found) or 'none'}")
    if dataset.classes is None:
        return found
    classes = [*map(normalize_label, dataset.classes)]
    if unknown := [name for name in found if name not in classes]:
        listed = f"{', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}"
        raise UserError(f"{root}: dataset.yaml does not list class {', '.join(unknown[:5])}; it lists {listed}")
    return classes


def check_readable(table: pl.DataFrame, root: Path) -> None:
    """Raise `UserError` if each of the files has a problem."""
    if table["problem"].null_count() == 0:
        first = f"{table['file'][0]} {table['problem'][0]}"
        raise UserError(f"{root} has no example that can be read; the first problem: {first}")


def in_chunks(
    function: Callable[[pl.DataFrame], Iterable[Result]], table: pl.DataFrame, description: str
) -> Iterator[Result]:
    """Yield the results of `function` for the rows of a table, in their order, computed in all cores' threads.

    Pillow and hashlib release Python's lock while they work. Only as many results as `AHEAD` allows wait in memory.
    """
    size = CHUNK if table["shard"].null_count() == len(table) else SHARD_CHUNK
    chunks = (table.slice(start, size) for start in range(0, len(table), size))
    waiting: deque[Future[Iterable[Result]]] = deque()
    with (
        Progress(transient=True, disable=not sys.stdout.isatty()) as progress,
        ThreadPoolExecutor(CPUS) as threads,
    ):
        task = progress.add_task(description, total=len(table))
        try:
            for chunk in chunks:
                waiting.append(threads.submit(function, chunk))
                if len(waiting) > AHEAD:
                    yield from waiting.popleft().result()
                    progress.advance(task, size)
            while waiting:
                yield from waiting.popleft().result()
                progress.advance(task, size)
        finally:
            threads.shutdown(cancel_futures=True)
