"""Tensors between two stages, as folders of memory maps: validated when written and when read."""

import json
import os
from math import prod
from pathlib import Path

import torch
from pandera.errors import SchemaError, SchemaErrors
from pandera.tensordict import TensorDictSchema
from tensordict import TensorDict

from stages.core.artifacts import SHOWN, replacing
from stages.core.errors import UserError


def validate_tensors(data: TensorDict, schema: TensorDictSchema, path: Path) -> None:
    """Raise `UserError` with `path`, the column, the rule and the first failing rows of every violation."""
    try:
        schema.validate(data, lazy=True, inplace=True)  # else pandera would copy them first
    except SchemaErrors as errors:
        raise UserError("\n".join([f"{path} violates its schema:", *explain(errors)])) from None


def explain(errors: SchemaErrors) -> list[str]:
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
    validate_tensors(data, schema, path)
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
    validate_tensors(data, schema, path)
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
