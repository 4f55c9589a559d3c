"""IDX files: what is written is read again, and nothing else is."""

import struct
import tracemalloc
from pathlib import Path

import pytest
import torch

from stages.core.data.idx import FILES, read_idx, read_raw, write_idx
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
    data = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    write_idx(path, data)
    read = read_idx(path, len(shape))
    assert read.dtype == torch.uint8
    assert torch.equal(read, data)


def test_layout(path: Path) -> None:
    # not contiguous: the file still has the rows one after the other
    data = torch.arange(6, dtype=torch.uint8).reshape(1, 3, 2).transpose(1, 2)
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
    assert f"is no IDX file of 1-D bytes: magic {magic:#010x}, not 0x00000801" in refusal(path, ndim=1)


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


def test_raw_split(tmp_path: Path) -> None:
    images = torch.randint(256, (4, 5, 6), dtype=torch.uint8)
    labels = torch.tensor([3, 1, 2, 0], dtype=torch.uint8)
    write_idx(tmp_path / FILES["test_images"], images)
    write_idx(tmp_path / FILES["test_labels"], labels)
    data = read_raw(tmp_path, "test")
    assert data.batch_size == (4,)
    assert torch.equal(data["image"], images.reshape(4, 1, 5, 6))
    assert torch.equal(data["label"], labels)


@pytest.mark.parametrize("count", [3, 5])
def test_images_and_labels_count(tmp_path: Path, count: int) -> None:
    write_idx(tmp_path / FILES["train_images"], torch.zeros(4, 2, 2, dtype=torch.uint8))
    write_idx(tmp_path / FILES["train_labels"], torch.zeros(count, dtype=torch.uint8))
    with pytest.raises(UserError) as refused:
        read_raw(tmp_path, "train")
    assert str(refused.value) == (
        f"{tmp_path / FILES['train_images']} has 4 images, {tmp_path / FILES['train_labels']} has {count} labels"
    )
