"""Files between two stages: validated when written and when read, and whole or not there at all."""

import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pandera.errors import SchemaError, SchemaErrors
from pandera.polars import DataFrameSchema
from pandera.tensordict import TensorDictSchema
from tensordict import TensorDict

from stages.core.errors import UserError

SHOWN = 5  # failing rows named in a message


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or folder to; it takes its place in one step if nothing was raised."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        yield partial
        if path.is_dir() or partial.is_dir():
            remove(path)  # only a file takes a file's place in one step
        partial.replace(path)
    except OSError as error:  # of a full disk it does not say where
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # where nothing can be written, nothing can be removed
            remove(partial)


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock that ends with this process; `BlockingIOError` where another holds it, or wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextmanager
def alone(stage: str) -> Iterator[None]:
    """Wait until no other process is at this stage in this folder: a `dvc repro` that is killed leaves one behind."""
    path = Path(f".dvc/tmp/stages/{stage}.lock")
    with ExitStack() as stack:
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes the first one stands for all
            try:
                stack.enter_context(locked(path))
            except BlockingIOError:
                print(f"{stage}: waits for another process of it (`pgrep -f stages.{stage}` finds it)", flush=True)
                stack.enter_context(locked(path, wait=True))
        yield


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def validate(data: Any, schema: DataFrameSchema | TensorDictSchema, path: Path) -> None:
    """Raise `UserError` with `path`, the column, the rule and the first failing rows of every violation."""
    tabular = isinstance(schema, DataFrameSchema)
    try:
        # tensors in place, for pandera would copy them first
        schema.validate(data, lazy=True, inplace=not tabular)
    except SchemaErrors as errors:
        explain = explain_tables if tabular else explain_tensors
        raise UserError("\n".join([f"{path} violates its schema:", *explain(errors)])) from None


def explain_tables(errors: SchemaErrors) -> list[str]:
    lines = []
    cases: pl.DataFrame = errors.failure_cases
    for (column, check), rows in cases.group_by("column", "check", maintain_order=True):
        where = f"column '{column}'" if column else "table"
        found = [
            # polars appends its plan to an error
            ("" if row["index"] is None else f"row {row['index']}: ") + str(row["failure_case"]).split("\n")[0]
            for row in rows.head(SHOWN).iter_rows(named=True)
        ]
        lines.append(f"  {where}: {check} ({len(rows)} failing; {', '.join(found)})")
    return lines


def explain_tensors(errors: SchemaErrors) -> list[str]:
    lines = []
    for error in errors.schema_errors:
        assert isinstance(error, SchemaError)
        cases = error.failure_cases
        if isinstance(cases, dict) and "index" in cases:
            rows = cases["index"][:SHOWN]
            # an image does not fit into a message; its row finds it
            values = [str(value) for value in cases["failure_case"][:SHOWN]]
            found = f", found {', '.join(values)}" if all(len(value) < 20 for value in values) else ""
            rule = getattr(error.check, "error", None) or error.check
            lines.append(f"  column '{error.column_name}': {rule} (failing rows {', '.join(map(str, rows))}{found})")
        else:
            lines.append(f"  {error}")
    return lines


def write_tensors(data: TensorDict, path: Path, schema: TensorDictSchema) -> None:
    """Save as a folder of memory maps."""
    validate(data, schema, path)
    with replacing(path) as partial:
        partial.mkdir()
        for name, tensor in data.items():
            assert isinstance(tensor, torch.Tensor)
            reserve(partial / f"{name}.memmap", tensor.nbytes)
        data.memmap(str(partial))


def reserve(path: Path, size: int) -> None:
    """A file of so many bytes that has its place on the disk: on a full one, a memory map kills who writes to it."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


def read_tensors(path: Path, schema: TensorDictSchema) -> TensorDict:
    """Memory-mapped: pages are read when they are touched."""
    try:
        check_sizes(path)
        data = TensorDict.load_memmap(str(path), allow_pickle=False)
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    validate(data, schema, path)
    assert isinstance(data, TensorDict)
    return data


def check_sizes(path: Path) -> None:
    """Raise `ValueError` where a memory map has not the size that meta.json says: it would be filled up with zeros."""
    for name, entry in json.loads((path / "meta.json").read_text()).items():
        if isinstance(entry, dict) and "dtype" in entry:
            size = prod(entry["shape"]) * getattr(torch, entry["dtype"].removeprefix("torch.")).itemsize
            file = path / f"{name}.memmap"
            found = file.stat().st_size if file.exists() else 0
            if found != size:
                raise ValueError(f"{file.name} has {found} bytes, not {size}")


def write_table(table: pl.DataFrame, path: Path, schema: DataFrameSchema) -> None:
    """Save as CSV or Parquet, by the suffix of `path`."""
    validate(table, schema, path)
    buffer = io.BytesIO()  # for polars does not tell a full disk from other errors
    if path.suffix == ".csv":
        table.write_csv(buffer)
    else:
        table.write_parquet(buffer)
    with replacing(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def read_table(path: Path, schema: DataFrameSchema) -> pl.DataFrame:
    try:
        if path.suffix == ".csv":
            table = pl.read_csv(
                path, schema_overrides={name: column.dtype.type for name, column in schema.columns.items()}
            )
        else:
            table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    validate(table, schema, path)
    return table


def write_json(values: dict[str, Any], path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
