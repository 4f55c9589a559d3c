"""Read and write IDX files, the format of MNIST.

LeCun, Cortes & Burges' MNIST page describes it: two zero bytes, the type (8: unsigned byte), the number of dimensions,
each dimension as a big-endian 32-bit integer, then the data.
"""

import gzip
import struct
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from stages.core.data.config import IdxChecksums
from stages.core.files.checksums import sha256
from stages.core.files.errors import UserError


class IdxFiles(NamedTuple):
    """Name the two files of one split."""

    images: str  # bytes [N, H, W], or [N, C, H, W] in a file of the same name with idx4
    labels: str  # bytes [N]


FILES = {
    "train": IdxFiles("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": IdxFiles("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
NAMES = [name for files in FILES.values() for name in files]
GZIP = b"\x1f\x8b"  # A gzipped file begins with these bytes.


class RawSplit(NamedTuple):
    """Hold one split as it was delivered."""

    inputs: NDArray[np.uint8]  # [N, C, H, W], mapped from the file
    labels: NDArray[np.uint8]  # [N]
    file: str  # where the inputs are


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Map an uncompressed IDX file of `ndim` dimensions; raise `UserError` if its header, its size and `ndim` disagree.

    Labels and images are read on access, so a file may be larger than memory.
    """
    if not path.exists():
        raise UserError(f"{path} not found; an IDX data set has the files {', '.join(NAMES)}")
    with path.open("rb") as file:
        shape = read_header(file, ndim, path)
    check_size(path, shape, path)  # Nothing is mapped before this check, because the header may claim any size.
    if prod(shape) == 0:
        raise UserError(f"{path} is empty: its header says {[*shape]}")
    return np.memmap(path, np.uint8, "r", header_size(ndim), shape)


def signature(ndim: int) -> bytes:
    """Return the first bytes of an IDX file of `ndim`-D bytes."""
    return struct.pack(">I", 0x0800 + ndim)


def header_size(ndim: int) -> int:
    """Return the number of bytes before the data."""
    return 4 + 4 * ndim


def open_idx(path: Path) -> BinaryIO:
    """Open an IDX file, decompressed if it is gzipped."""
    with path.open("rb") as file:
        zipped = file.read(len(GZIP)) == GZIP
    return cast("BinaryIO", gzip.open(path)) if zipped else path.open("rb")


def read_header(file: BinaryIO, ndim: int, name: Path | str) -> tuple[int, ...]:
    """Return the shape of the `ndim`-D bytes in an open IDX file, and leave the file at the start of the data.

    Raises `UserError` with `name` if the file holds anything else.
    """
    size = header_size(ndim)
    header = file.read(size)
    if len(header) < size:
        raise UserError(f"{name} is truncated: {len(header)} bytes, the header alone takes {size}")
    magic, *shape = struct.unpack(f">{1 + ndim}I", header)
    if magic != 0x0800 + ndim:
        raise UserError(f"{name} is not an IDX file of {ndim}-D bytes: magic {magic:#010x}, not {0x0800 + ndim:#010x}")
    return tuple(shape)


def check_size(path: Path, shape: tuple[int, ...], name: Path | str) -> None:
    """Raise `UserError` with `name` if an uncompressed file does not have the size that its header states."""
    size, expected = path.stat().st_size, header_size(len(shape)) + prod(shape)
    if size != expected:
        raise UserError(f"{name} has {size} bytes, but its header says {[*shape]}: {expected} bytes")


def read_parts(path: Path, shape: tuple[int, ...], step: int, first: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the data of an IDX file, gzipped or not, `step` examples at a time, skipping the first `first` parts.

    Raises `EOFError` where the data end early, or gzip's own exception where they are damaged; before part `first`,
    nothing is yielded instead.
    """
    count, *example = shape
    size, start = prod(example), first * step
    with open_idx(path) as file:
        begin = header_size(len(shape)) + size * start
        try:
            reached = file.seek(begin)
        except (OSError, EOFError, zlib.error):
            return
        if reached < begin:
            return
        for index in range(start, count, step):
            wanted = size * min(step, count - index)
            content = file.read(wanted)
            if len(content) < wanted:
                raise EOFError(f"it ends before example {index + len(content) // size:,} of {count:,}")
            yield np.frombuffer(content, np.uint8).reshape(-1, *example)


def write_idx(path: Path, data: NDArray[np.uint8]) -> None:
    """Write an array of bytes as an IDX file."""
    with path.open("wb") as file:
        file.write(signature(data.ndim) + struct.pack(f">{data.ndim}I", *data.shape))
        file.write(data.tobytes())


def is_idx(folder: Path) -> bool:
    """Return whether a folder holds at least one file of an IDX data set, gzipped or not."""
    return any((folder / f"{name}{suffix}").exists() for name in NAMES for suffix in ("", ".gz"))


def images_file(folder: Path, split: str) -> Path:
    """Return the file of a split's images: the one of 4-D bytes if there is one."""
    flat = folder / FILES[split].images
    planes = flat.with_name(flat.name.replace("idx3", "idx4"))
    return planes if planes.exists() else flat


def read_raw(folder: Path, split: str) -> RawSplit:
    """Return the split "train" or "test" of the data set in `folder`."""
    images, labels = images_file(folder, split), folder / FILES[split].labels
    inputs, labels_N = read_idx(images, ndim=4 if "idx4" in images.name else 3), read_idx(labels, ndim=1)
    if len(inputs) != len(labels_N):
        raise UserError(f"{images} has {len(inputs)} images, {labels} has {len(labels_N)} labels")
    return RawSplit(inputs if inputs.ndim == 4 else inputs[:, None], labels_N, images.name)


def verify_checksums(folder: Path, expected: IdxChecksums) -> None:
    """Raise `UserError` if one of the four files does not have the checksum that params.yaml states."""
    for split, checksums in expected.model_dump().items():
        paths = {"images": images_file(folder, split), "labels": folder / FILES[split].labels}
        for kind, allowed in checksums.items():
            if (found := sha256(paths[kind])) != allowed:
                raise UserError(f"{paths[kind].name} has sha256 {found}, dataset.yaml says {allowed}")
