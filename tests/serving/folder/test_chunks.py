"""Test that the chunks of a folder are the same wherever reading starts."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.folder.chunks import Chunk, read_chunks
from serving.folder.discovery import find_sources
from tests.serving.folder.conftest import IMAGES


def chunks(folder: Path, batch_size: int, skip: int = 0) -> list[dict[str, Any]]:
    def comparable(chunk: Chunk) -> dict[str, Any]:
        array = None if chunk.array is None else chunk.array.tolist()
        return chunk._asdict() | {"sources": [source.name for source in chunk.sources], "array": array}

    return [comparable(chunk) for chunk in read_chunks(find_sources(folder), batch_size, skip)]


@pytest.mark.parametrize("batch_size", [7, 64])
def test_chunks_after_a_restart_are_those_of_one_run(folder: Path, batch_size: int) -> None:
    (folder / "a-cut.gz").write_bytes(gzip.compress((folder / "a-idx3-ubyte").read_bytes())[:-4000])
    (folder / "bad.npy").write_bytes(b"\x93NUMPY")
    whole = chunks(folder, batch_size)
    numbers = [chunk["number"] for chunk in whole]
    assert numbers == sorted(set(numbers))
    assert any("is damaged" in (chunk["error"] or "") for chunk in whole)
    for skip in range(numbers[-1] + 2):
        assert chunks(folder, batch_size, skip) == [chunk for chunk in whole if chunk["number"] >= skip]


@pytest.mark.parametrize("batch_size", [1, 7, 40, 64])
@pytest.mark.parametrize("name", ["a-idx3-ubyte", "b.gz", "c.npy"])
def test_an_array_is_read_as_a_whole(folder: Path, name: str, batch_size: int) -> None:
    parts = [np.array(chunk["array"], np.uint8) for chunk in chunks(folder / name, batch_size)]
    assert {len(part) for part in parts[:-1]} <= {batch_size}
    np.testing.assert_array_equal(np.concatenate(parts), 255 - IMAGES if name == "c.npy" else IMAGES)


def test_an_array_in_column_order_is_read_like_any_other(tmp_path: Path) -> None:
    np.save(tmp_path / "columns.npy", np.asfortranarray(IMAGES))
    (chunk,) = read_chunks(find_sources(tmp_path), 64, 0)
    assert chunk.array is not None
    assert chunk.array.flags.c_contiguous
    np.testing.assert_array_equal(chunk.array, IMAGES)
