"""Test that an array is read as it was written, and that a damaged one is reported by name."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import DTypeLike

from stages.core.files.arrays import map_array, write_array
from stages.core.files.errors import UserError

SHAPE = (5, 1, 4, 3)
ARRAY = np.random.default_rng(1).integers(256, size=SHAPE, dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file that holds `ARRAY`."""
    path = tmp_path / "train.npy"
    write_array(path, SHAPE, np.uint8, [ARRAY[:2], ARRAY[2:]])
    return path


def refused(path: Path, shape: tuple[int, ...] = SHAPE, dtype: DTypeLike = np.uint8) -> str:
    with pytest.raises(UserError) as refusal:
        map_array(path, shape, dtype)
    message = str(refusal.value)
    assert message.startswith(f"{path} ")
    return message.removeprefix(f"{path} ")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 1, 2, 3)])
def test_parts_are_joined(tmp_path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> None:
    array = np.random.default_rng(1).integers(200, size=shape).astype(dtype)
    write_array(tmp_path / "array.npy", shape, dtype, (array[:1], array[1:4], array[4:]))
    mapped = map_array(tmp_path / "array.npy", shape, dtype)
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, array, strict=True)
    np.testing.assert_array_equal(np.load(tmp_path / "array.npy"), array, strict=True)


def test_a_part_that_is_not_contiguous_is_written_row_by_row(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(0, 2, 1)
    write_array(tmp_path / "array.npy", array.shape, np.uint8, [array[:1], array[1:]])
    np.testing.assert_array_equal(map_array(tmp_path / "array.npy", array.shape, np.uint8), array)


def test_a_change_of_the_map_does_not_reach_the_file(path: Path) -> None:
    content = path.read_bytes()
    map_array(path, SHAPE, np.uint8)[:] = 0
    assert path.read_bytes() == content


@pytest.mark.parametrize("shape", [(4, 1, 4, 3), (6, 1, 4, 3), (5, 1, 3, 4), (5, 4, 3), (60,), (5, 3, 4, 3)])
def test_another_shape(path: Path, shape: tuple[int, ...]) -> None:
    assert refused(path, shape) == f"holds uint8 [5, 1, 4, 3], expected uint8 {[*shape]}"


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32"])
def test_another_dtype(path: Path, dtype: str) -> None:
    assert refused(path, dtype=dtype) == f"holds uint8 [5, 1, 4, 3], expected {dtype} [5, 1, 4, 3]"


def test_another_byte_order(tmp_path: Path) -> None:
    array = np.arange(5, dtype=">i2")
    write_array(tmp_path / "array.npy", (5,), ">i2", [array])
    assert refused(tmp_path / "array.npy", (5,), "<i2") == "holds >i2 [5], expected int16 [5]"


def test_values_in_the_order_of_columns(path: Path) -> None:
    np.save(path, np.asfortranarray(ARRAY))
    assert refused(path) == "is damaged: its values are not stored row by row"


def test_a_truncated_file(path: Path) -> None:
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert refused(path).startswith("is damaged: ")
        assert path.read_bytes() == content[:size], "reading has changed the file"


def test_bytes_after_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")
    assert refused(path) == "is damaged: 189 bytes instead of 188"


def test_any_damage_to_the_header_is_noticed_or_changes_nothing(path: Path) -> None:
    content = path.read_bytes()
    for place in range(len(content) - ARRAY.size):
        for other in (0, 10, 32, 39, 40, 41, 49, 57, 76, 91, 92, 125, 255, content[place] ^ 1):
            path.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy warns of a header that looks like one of Python 2.
                try:
                    mapped = map_array(path, SHAPE, np.uint8)
                except UserError as error:
                    assert str(error).startswith(f"{path} ")  # noqa: PT017
                else:
                    np.testing.assert_array_equal(mapped, ARRAY, strict=True)


@pytest.mark.parametrize("count", ["-5", "2**9", str(2**40), str(2**62), str(2**70), "5" * 50])
def test_a_header_that_claims_another_number_of_rows(path: Path, count: str) -> None:
    header, values = path.read_bytes()[:-60], path.read_bytes()[-60:]
    claim = header.rstrip().replace(b"(5,", f"({count},".encode()).ljust(len(header) - 1) + b"\n"
    path.write_bytes(claim + values)
    assert refused(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 188, b"PK\x03\x04" + bytes(184), b"no array"])
def test_other_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refused(path).startswith("is damaged: ")


def test_objects_are_never_unpickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert refused(path).startswith("is damaged: ")


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("missing.npy")):
        map_array(tmp_path / "missing.npy", SHAPE, np.uint8)
