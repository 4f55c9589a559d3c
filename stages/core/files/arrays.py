"""Write arrays as .npy files and map them into memory, so that a split may be larger than memory."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stages.core.files.errors import UserError


def write_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike, parts: Iterable[NDArray[np.generic]]) -> None:
    """Write `parts`, which have this shape when joined along the first axis, as one .npy file (NEP 1)."""
    with path.open("wb") as file:
        description = np.lib.format.dtype_to_descr(np.dtype(dtype))
        header = {"descr": description, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        # Ordinary writes report a full disk. A write to a memory map would kill the process.
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).data)


def map_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.memmap[tuple[int, ...], np.dtype[np.generic]]:
    """Map a .npy file into memory, copied on write; raise `UserError` unless it has this shape and dtype."""
    try:
        array = np.lib.format.open_memmap(path, mode="c")
    except OSError:
        raise
    except Exception as error:  # The header is Python source, for which NumPy raises many kinds of exceptions.
        raise UserError(f"{path} is damaged: {error}") from error
    if (array.shape, array.dtype) != (shape, np.dtype(dtype)):
        expected = f"{np.dtype(dtype)} {[*shape]}"
        raise UserError(f"{path} holds {array.dtype} {[*array.shape]}, expected {expected}")
    # NumPy also accepts trailing bytes, and values that are stored column by column.
    if (size := path.stat().st_size) != (expected_size := array.offset + array.nbytes):
        raise UserError(f"{path} is damaged: {size} bytes instead of {expected_size}")
    if not array.flags.c_contiguous:
        raise UserError(f"{path} is damaged: its values are not stored row by row")
    return array
