"""Provide a folder with the same images in files of every format."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.core.data.idx import write_idx
from tests.conftest import make_images

IMAGES = make_images(40, seed=3)[0]


def write_folder(made: Path) -> Path:
    """Write the same images in every format, light on dark and dark on light."""
    (made / "fünf 数字").mkdir(parents=True)
    write_idx(made / "a-idx3-ubyte", IMAGES)
    (made / "b.gz").write_bytes(gzip.compress((made / "a-idx3-ubyte").read_bytes()))
    np.save(made / "c.npy", 255 - IMAGES)
    np.save(made / "d.npy", np.stack([IMAGES] * 3, axis=-1))
    for index, image in enumerate(IMAGES):
        Image.fromarray(image).convert("RGB").save(made / "fünf 数字" / f"{index:02}.png")
    write_idx(made / "labels-idx1-ubyte", np.zeros(40, np.uint8))
    (made / "notes.txt").write_text("no image")
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "my images")
