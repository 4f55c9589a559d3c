"""Image data sets as IDX files and as tensors.

IDX is the format of LeCun, Cortes & Burges' MNIST page: two zero bytes, the type (8: unsigned byte), the number of
dimensions, each dimension as a big-endian 32-bit integer, then the data.

Shape suffixes: N images, C = 1 channel, H x W pixels.
"""

import struct
from math import prod
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from stages.core.errors import UserError

RAW = Path("artifacts/raw")
FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def read_idx(path: Path, ndim: int) -> Tensor:
    """The uint8 tensor in an uncompressed IDX file; `UserError` where header, size and `ndim` do not agree."""
    size, header = path.stat().st_size, 4 + 4 * ndim
    with path.open("rb") as file:
        head = file.read(header)
        if len(head) < header:
            raise UserError(f"{path} is truncated: {size} bytes, the header alone takes {header}")
        magic, *shape = struct.unpack(f">{1 + ndim}I", head)
        if magic != 0x0800 + ndim:
            raise UserError(f"{path} is no IDX file of {ndim}-D bytes: magic {magic:#010x}, not {0x0800 + ndim:#010x}")
        # before anything is allocated: the header may claim any size
        if size != header + prod(shape):
            raise UserError(f"{path} has {size} bytes, but its header says {shape}: {header + prod(shape)} bytes")
        if prod(shape) == 0:
            raise UserError(f"{path} is empty: its header says {shape}")
        return torch.from_numpy(np.fromfile(file, dtype=np.uint8).reshape(shape))


def write_idx(path: Path, data: Tensor) -> None:
    """The inverse of `read_idx`, for a uint8 tensor."""
    with path.open("wb") as file:
        file.write(struct.pack(f">{1 + data.ndim}I", 0x0800 + data.ndim, *data.shape))
        file.write(data.numpy().tobytes())


def read_raw(folder: Path, split: str) -> TensorDict:
    """`image` uint8 [N, 1, H, W] and `label` uint8 [N] of the split "train" or "test"."""
    images_path, labels_path = folder / FILES[f"{split}_images"], folder / FILES[f"{split}_labels"]
    images_NHW, labels_N = read_idx(images_path, ndim=3), read_idx(labels_path, ndim=1)
    if len(images_NHW) != len(labels_N):
        raise UserError(f"{images_path} has {len(images_NHW)} images, {labels_path} has {len(labels_N)} labels")
    return TensorDict({"image": images_NHW.unsqueeze(1), "label": labels_N}, batch_size=[len(labels_N)])


def normalize_pixels(images_NCHW: Tensor, mean: float, std: float) -> Tensor:
    """uint8 pixels 0..255 as float32 (x / 255 - mean) / std."""
    return (images_NCHW.float() / 255 - mean) / std
