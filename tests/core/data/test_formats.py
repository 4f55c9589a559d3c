"""Test the conversion of other formats to IDX files."""

import gzip
import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stages.core.data.formats import convert, load_arrays
from stages.core.data.idx import read_raw
from stages.core.files.errors import UserError
from tests.test_download import Trap

BATCHES = {"train": [f"data_batch_{part}" for part in range(1, 6)], "test": ["test_batch"]}
COUNT = 4  # images in a batch


PurePython: Any = pickle._Pickler


class Python2Pickler(PurePython):  # type: ignore[misc]
    """Write bytes and texts as Python 2 did, in which the authors of CIFAR-10 wrote their files."""

    dispatch: ClassVar[dict[type, Any]] = dict(PurePython.dispatch)

    def save_bytes(self, content: bytes) -> None:
        if len(content) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(content)]) + content)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(content)

    def save_text(self, text: str) -> None:
        self.save_bytes(text.encode("latin1"))

    dispatch[bytes] = save_bytes
    dispatch[str] = save_text


def dump(value: Any, python: int) -> bytes:
    if python == 3:
        return pickle.dumps(value, protocol=2)
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core", b"numpy.core")


@pytest.fixture
def images() -> NDArray[np.uint8]:
    """Return images [6 * COUNT, H, W, C] of all byte values."""
    return np.random.default_rng(1).integers(256, size=(6 * COUNT, 32, 32, 3), dtype=np.uint8)


LABELS = [index % 10 for index in range(6 * COUNT)]


def write_pickles(folder: Path, images: NDArray[np.uint8], python: int = 2) -> Path:
    folder.mkdir()
    for index, name in enumerate([*BATCHES["train"], *BATCHES["test"]]):
        rows = slice(COUNT * index, COUNT * index + COUNT)
        data = np.ascontiguousarray(images[rows].transpose(0, 3, 1, 2).reshape(COUNT, 3072))
        names = [f"file_{row}.png" for row in range(COUNT)]
        batch = {"batch_label": f"batch {index}", "labels": LABELS[rows], "data": data, "filenames": names}
        (folder / name).write_bytes(dump(batch, python))
    return folder


def write_strips(folder: Path, images: NDArray[np.uint8]) -> Path:
    folder.mkdir()
    for index, name in enumerate([*BATCHES["train"], *BATCHES["test"]]):
        rows = images[COUNT * index : COUNT * index + COUNT]
        Image.fromarray(rows.reshape(COUNT, 1024, 3)).save(folder / f"{name}.png")
    (folder / "train_lables.json").write_text(json.dumps(LABELS[: 5 * COUNT]))
    (folder / "test_lables.json").write_text(json.dumps(LABELS[5 * COUNT :]))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("python", [2, 3])
def test_both_formats_of_cifar_10_give_the_same_bytes(tmp_path: Path, images: NDArray[np.uint8], python: int) -> None:
    pickles, strips = tmp_path / "from pickles", tmp_path / "from strips"
    for folder in (pickles, strips):
        folder.mkdir()
    convert("cifar-10-pickles", write_pickles(tmp_path / "pickles", images, python), pickles)
    convert("cifar-10-strips", write_strips(tmp_path / "strips", images), strips)
    assert contents(pickles) == contents(strips)
    train, test = read_raw(pickles, "train"), read_raw(pickles, "test")
    np.testing.assert_array_equal(np.concatenate([train.inputs, test.inputs]), images.transpose(0, 3, 1, 2))
    assert [*train.labels, *test.labels] == LABELS


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_a_missing_batch_is_named(tmp_path: Path, images: NDArray[np.uint8], name: str) -> None:
    source = write_pickles(tmp_path / "pickles", images)
    (source / name).unlink()
    with pytest.raises(UserError, match=f"it must hold {name}, found data_batch_1, "):
        convert("cifar-10-pickles", source, tmp_path)


def test_a_strip_of_another_kind_is_refused(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    source = write_strips(tmp_path / "strips", images)
    Image.new("L", (1000, 4)).save(source / "data_batch_2.png")
    with pytest.raises(UserError, match=r"data_batch_2.png must be RGB and 1024 pixels wide, found L and 1000"):
        convert("cifar-10-strips", source, tmp_path)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([1, 2], "train has 20 images of uint8 and 2 labels"),
        ([300] * 20, "train has the labels 300 to 300, allowed: 0 to 255"),
        ({"a": 1}, "it is not in the format cifar-10-strips: "),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, images: NDArray[np.uint8], labels: Any, reason: str
) -> None:
    source = write_strips(tmp_path / "strips", images)
    (source / "train_lables.json").write_text(json.dumps(labels))
    with pytest.raises(UserError, match=reason):
        convert("cifar-10-strips", source, tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1, 2]), gzip.compress(b"x", mtime=0)])
def test_any_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "data_batch_1").write_bytes(content)
    with pytest.raises(UserError):
        convert("cifar-10-pickles", source, tmp_path)


def test_a_pickle_runs_nothing_even_if_its_checksum_is_right(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        pickled = pickle.dumps({"data": Trap(marker)}, protocol)
        with pytest.raises(UserError, match="allowed are only NumPy arrays"):
            load_arrays(io.BytesIO(pickled))
        assert not marker.exists()
        pickle.loads(pickled)
        assert marker.exists(), "the trap itself does not work"
        marker.unlink()
