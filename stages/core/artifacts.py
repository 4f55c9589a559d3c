"""Files between two stages: validated when written and when read, and whole or not there at all.

Tensors are in stages/core/tensors.py: what needs none of them, as the service does, does not import torch.
"""

import ctypes
import errno
import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl
from pandera.errors import SchemaErrors
from pandera.polars import DataFrameSchema

from stages.core.errors import UserError

SHOWN = 5  # failing rows named in a message


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or folder to; unless an exception is raised, it then replaces `path`.

    Readers find either the old version or the new one, complete, even after a kill. Only on a file system that cannot
    exchange folders is there a moment with neither.
    """
    partial, aside = (path.with_name(f"{path.name}.{suffix}") for suffix in ("partial", "aside.partial"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (partial, aside):  # A run that was killed may have left these.
            remove(leftover)
        yield partial
        for file in [partial, *partial.rglob("*")]:
            flush(file)
        if not os.path.lexists(path) or not (path.is_dir() or partial.is_dir()):
            partial.replace(path)
        elif not exchange(partial, path):
            path.rename(aside)
            partial.rename(path)
            remove(aside)
    except OSError as error:  # The error of a full disk does not name the file.
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # Where nothing can be written, nothing can be removed.
            remove(partial)


def exchange(one: Path, other: Path) -> bool:
    """Exchange what the two paths name in one step, by Linux's renameat2; return False if that is not supported."""
    at_fdcwd, rename_exchange = -100, 2  # from fcntl.h and stdio.h
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0:
        return True
    # The file system does not know it, the kernel neither, or a sandbox or an overlay's lower layer forbids it.
    if (number := ctypes.get_errno()) in {errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP}:
        return False
    raise OSError(number, os.strerror(number), str(other))


def flush(path: Path) -> None:
    """Have a file on the disk before it gets its final name: after a power cut it might be there and empty."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock that ends with this process; `BlockingIOError` where another holds it, or wait for it.

    Who holds it may remove its file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        held = False
        while not held:
            file = stack.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):  # of a file that has been removed meanwhile the lock is worth nothing
                held = os.path.samestat(os.fstat(file.fileno()), path.stat())
        yield


def is_first() -> bool:
    """Whether this process is the first of those that torchrun has started, which stands for all, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def alone(stage: str) -> Iterator[None]:
    """Wait until no other process is at this stage in this folder: a `dvc repro` that is killed leaves one behind."""
    path = Path(f".dvc/tmp/stages/{stage}.lock")
    with ExitStack() as stack:
        if is_first():
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


def validate(table: pl.DataFrame, schema: DataFrameSchema, path: Path) -> None:
    """Raise `UserError` with `path`, the column, the rule and the first failing rows of every violation."""
    try:
        schema.validate(table, lazy=True)
    except SchemaErrors as errors:
        raise UserError("\n".join([f"{path} violates its schema:", *explain(errors)])) from None


def explain(errors: SchemaErrors) -> list[str]:
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
