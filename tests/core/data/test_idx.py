"""Test that what is written to an IDX file is read again, and nothing else is."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from stages.core.data.config import IdxChecksums
from stages.core.data.idx import FILES, read_idx, read_raw, verify_checksums, write_idx
from stages.core.files.checksums import sha256
from stages.core.files.errors import UserError


def idx(*shape: int, data: bytes, magic: int | None = None) -> bytes:
    magic = 0x0800 + len(shape) if magic is None else magic
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file-idx-ubyte"


def refusal(path: Path, ndim: int) -> str:
    with pytest.raises(UserError) as refused:
        read_idx(path, ndim)
    assert str(path) in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("shape", [(1,), (256,), (1, 1, 1), (5, 28, 28), (3, 4, 7)])
def test_round_trip(path: Path, shape: tuple[int, ...]) -> None:
    data = np.random.default_rng(1).integers(256, size=shape, dtype=np.uint8)
    write_idx(path, data)
    read = read_idx(path, len(shape))
    assert isinstance(read, np.memmap)
    np.testing.assert_array_equal(read, data, strict=True)


def test_layout(path: Path) -> None:
    # The array is not contiguous, but the file still has the rows one after the other.
    data = np.arange(6, dtype=np.uint8).reshape(1, 3, 2).transpose(0, 2, 1)
    write_idx(path, data)
    assert path.read_bytes() == b"\0\0\x08\x03" + b"\0\0\0\x01\0\0\0\x02\0\0\0\x03" + bytes([0, 2, 4, 1, 3, 5])


@pytest.mark.parametrize("size", [0, 3, 4, 7])
def test_truncated_header(path: Path, size: int) -> None:
    path.write_bytes(idx(3, data=b"abc")[:size])
    assert f"is truncated: {size} bytes, the header alone takes 8" in refusal(path, ndim=1)


def test_truncated_data(path: Path) -> None:
    path.write_bytes(idx(2, 3, 4, data=bytes(23)))
    assert "has 39 bytes, but its header says [2, 3, 4]: 40 bytes" in refusal(path, ndim=3)


def test_trailing_bytes(path: Path) -> None:
    path.write_bytes(idx(2, 3, 4, data=bytes(25)))
    assert "has 41 bytes, but its header says [2, 3, 4]: 40 bytes" in refusal(path, ndim=3)


@pytest.mark.parametrize("magic", [0x0803, 0x0D01, 0x0800, 0x01080000, 0x1F8B0800])
def test_wrong_magic(path: Path, magic: int) -> None:
    path.write_bytes(idx(3, data=b"abc", magic=magic))
    assert f"is not an IDX file of 1-D bytes: magic {magic:#010x}, not 0x00000801" in refusal(path, ndim=1)


@pytest.mark.parametrize("shape", [(0, 28, 28), (2, 0, 28), (0, 2**32 - 1, 2**32 - 1)])
def test_empty(path: Path, shape: tuple[int, ...]) -> None:
    path.write_bytes(idx(*shape, data=b""))
    assert f"is empty: its header says {list(shape)}" in refusal(path, ndim=3)


@pytest.mark.parametrize("shape", [(2**31, 28, 28), (2**32 - 1, 2**32 - 1, 2**32 - 1)])
def test_huge_claim_allocates_nothing(path: Path, shape: tuple[int, ...]) -> None:
    path.write_bytes(idx(*shape, data=bytes(784)))
    tracemalloc.start()
    try:
        message = refusal(path, ndim=3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert f"has 800 bytes, but its header says {list(shape)}" in message
    assert peak < 2**20


def test_a_change_of_the_data_does_not_reach_the_file(path: Path) -> None:
    write_idx(path, np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        read_idx(path, 1)[0] = 1


def test_a_missing_file_is_named_with_all_that_a_data_set_has(path: Path) -> None:
    assert "t10k-labels-idx1-ubyte" in refusal(path, ndim=1)


def test_raw_split(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(256, size=(4, 5, 6), dtype=np.uint8)
    labels = np.array([3, 1, 2, 0], np.uint8)
    write_idx(tmp_path / FILES["test"].images, images)
    write_idx(tmp_path / FILES["test"].labels, labels)
    raw = read_raw(tmp_path, "test")
    np.testing.assert_array_equal(raw.inputs, images.reshape(4, 1, 5, 6), strict=True)
    np.testing.assert_array_equal(raw.labels, labels, strict=True)
    assert raw.file == "t10k-images-idx3-ubyte"


@pytest.mark.parametrize("count", [3, 5])
def test_images_and_labels_count(tmp_path: Path, count: int) -> None:
    files = FILES["train"]
    write_idx(tmp_path / files.images, np.zeros((4, 2, 2), np.uint8))
    write_idx(tmp_path / files.labels, np.zeros(count, np.uint8))
    with pytest.raises(UserError) as refused:
        read_raw(tmp_path, "train")
    assert str(refused.value) == (
        f"{tmp_path / files.images} has 4 images, {tmp_path / files.labels} has {count} labels"
    )


@pytest.mark.parametrize("wrong", [(split, kind) for split in FILES for kind in ("images", "labels")], ids="_".join)
def test_the_checksum_of_each_file_is_verified(tiny_idx: Path, wrong: tuple[str, str]) -> None:
    expected = {
        split: {kind: sha256(tiny_idx / name) for kind, name in files._asdict().items()}
        for split, files in FILES.items()
    }
    verify_checksums(tiny_idx, IdxChecksums.model_validate(expected))
    split, kind = wrong
    found, expected[split][kind] = expected[split][kind], "0" * 64
    name = getattr(FILES[split], kind)
    with pytest.raises(UserError, match=f"^{name} has sha256 {found}, dataset.yaml says {'0' * 64}$"):
        verify_checksums(tiny_idx, IdxChecksums.model_validate(expected))
