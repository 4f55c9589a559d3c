"""Find the files in a folder that hold examples, by their content."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.core.data import idx
from stages.core.data.readers.listing import is_hidden, printable
from stages.core.examples import image, picture
from stages.core.files.errors import UserError

SUPPORTED = f"{', '.join(picture.FORMATS)}, IDX and .npy"
MAX_PIXELS = 100_000_000  # of an image in an array
NPY = b"\x93NUMPY"
IDX_IMAGES = idx.signature(3)
BROKEN = (OSError, EOFError, ValueError, zlib.error)  # Reading a file can raise these.


class Source(NamedTuple):
    """Hold a file and what was recognized in it; a file that cannot be read has an `error` and yields one row."""

    path: Path
    name: str
    kind: Literal["picture", "idx", "npy", "other", "hidden"]
    shape: tuple[int, ...] = ()  # of all examples in the array, for idx and npy
    error: str | None = None

    @property
    def examples(self) -> int:
        """Return the number of rows that the file yields."""
        if self.kind in ("idx", "npy"):
            return self.shape[0]
        return int(self.kind == "picture")


def find_sources(given: Path) -> Iterator[Source]:
    """Yield each regular file and each hidden file or folder, in a stable order, named relative to `given`."""
    if given.is_file():
        yield recognize(given, printable(given.name))
        return

    def give_up(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(given, onerror=give_up):
        hidden = {name for name in (*folders, *names) if is_hidden(name)}
        folders[:] = sorted(set(folders) - hidden)
        for name in sorted({*names} | hidden):
            path = Path(folder, name)
            relative = printable(path.relative_to(given))
            if name in hidden:
                yield Source(path, relative, "hidden")
            elif path.is_file():  # Pipes and dangling symbolic links are left out.
                yield recognize(path, relative)


def recognize(path: Path, name: str) -> Source:
    """Recognize a file by its first bytes; its suffix only shows what a damaged file was meant to be."""
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if picture.SIGNATURES.match(start):
            return Source(path, name, "picture")
        if suffix == ".npy" or start.startswith(NPY):
            array = map_npy(path)
            return Source(path, name, "npy", image.check_array(array.shape, array.dtype, name, MAX_PIXELS))
        if start.startswith((idx.GZIP, IDX_IMAGES)):
            return recognize_idx(path, name, zipped=start.startswith(idx.GZIP))
    except UserError as error:
        return Source(path, name, "picture", error=str(error))
    except BROKEN as error:
        return Source(path, name, "picture", error=f"{name} cannot be read: {error}")
    return Source(path, name, "picture" if suffix in picture.SUFFIXES else "other")


def recognize_idx(path: Path, name: str, *, zipped: bool) -> Source:
    """Recognize IDX images, gzipped or not; any other gzip file counts as a file without examples."""
    with idx.open_idx(path) as file:
        if file.read(len(IDX_IMAGES)) != IDX_IMAGES:
            return Source(path, name, "other")
        file.seek(0)
        shape = idx.read_header(file, 3, name)
    if not zipped:
        idx.check_size(path, shape, name)
    return Source(path, name, "idx", image.check_array(shape, np.dtype(np.uint8), name, MAX_PIXELS))


def map_npy(path: Path) -> NDArray[Any]:
    """Map a .npy file into memory; raise `ValueError` for any other file."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # The header is a Python literal, and parsing it can raise almost anything.
        raise ValueError(f"it is not a .npy file: {error}") from error
