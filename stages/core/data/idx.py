"""Read and write IDX files, the format of MNIST.

It is the format of LeCun, Cortes & Burges' MNIST page: two zero bytes, the type (8: unsigned byte), the number of
dimensions, each dimension as a big-endian 32-bit integer, then the data.
"""

import struct
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.core.data.config import IdxChecksums
from stages.core.files.checksums import sha256
from stages.core.files.errors import UserError


class IdxFiles(NamedTuple):
    """Name the two files of one split."""

    images: str  # bytes [N, H, W]
    labels: str  # bytes [N]


FILES = {
    "train": IdxFiles("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": IdxFiles("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
NAMES = [name for files in FILES.values() for name in files]


class RawSplit(NamedTuple):
    """Hold one split as it was delivered."""

    inputs: NDArray[np.uint8]  # [N, 1, H, W], mapped from the file
    labels: NDArray[np.uint8]  # [N]
    file: str  # where the inputs are


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Map an uncompressed IDX file of `ndim` dimensions; raise `UserError` if its header, its size and `ndim` disagree.

    Labels and images are read when they are touched, so a file may be larger than the memory.
    """
    if not path.exists():
        raise UserError(f"{path} not found; an IDX data set has the files {', '.join(NAMES)}")
    size, header = path.stat().st_size, 4 + 4 * ndim
    with path.open("rb") as file:
        head = file.read(header)
    if len(head) < header:
        raise UserError(f"{path} is truncated: {size} bytes, the header alone takes {header}")
    magic, *shape = struct.unpack(f">{1 + ndim}I", head)
    if magic != 0x0800 + ndim:
        raise UserError(f"{path} is not an IDX file of {ndim}-D bytes: magic {magic:#010x}, not {0x0800 + ndim:#010x}")
    # Nothing is mapped before this check, because the header may claim any size.
    if size != header + prod(shape):
        raise UserError(f"{path} has {size} bytes, but its header says {shape}: {header + prod(shape)} bytes")
    if prod(shape) == 0:
        raise UserError(f"{path} is empty: its header says {shape}")
    return np.memmap(path, np.uint8, "r", header, tuple(shape))


def write_idx(path: Path, data: NDArray[np.uint8]) -> None:
    """Write what `read_idx` reads."""
    with path.open("wb") as file:
        file.write(struct.pack(f">{1 + data.ndim}I", 0x0800 + data.ndim, *data.shape))
        file.write(data.tobytes())


def read_raw(folder: Path, split: str) -> RawSplit:
    """Return the split "train" or "test" of the data set in `folder`."""
    files = FILES[split]
    images_NHW, labels_N = read_idx(folder / files.images, ndim=3), read_idx(folder / files.labels, ndim=1)
    if len(images_NHW) != len(labels_N):
        raise UserError(
            f"{folder / files.images} has {len(images_NHW)} images, {folder / files.labels} has {len(labels_N)} labels"
        )
    return RawSplit(images_NHW[:, None], labels_N, files.images)


def verify_checksums(folder: Path, expected: IdxChecksums) -> None:
    """Raise `UserError` if one of the four files does not have the checksum that params.yaml states."""
    for split, checksums in expected.model_dump().items():
        for kind, allowed in checksums.items():
            name = getattr(FILES[split], kind)
            if (found := sha256(folder / name)) != allowed:
                raise UserError(f"{name} has sha256 {found}, params.yaml says {allowed}")
