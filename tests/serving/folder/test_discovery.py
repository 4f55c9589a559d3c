"""Test how files are recognized by their content."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from serving.folder.discovery import MAX_PIXELS, find_sources
from stages.core.data.idx import signature, write_idx


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 4), (1, 5, 4)), ((6, 5, 4), (6, 5, 4)), ((5, 4, 3), (1, 5, 4, 3)), ((6, 5, 4, 3), (6, 5, 4, 3))],
)
def test_arrays_of_grey_and_of_coloured_images(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    (source,) = find_sources(tmp_path)
    assert (source.kind, source.shape, source.error) == ("npy", expected, None)


@pytest.mark.parametrize("shape", [(5,), (6, 5, 4, 2), (2, 6, 5, 4, 3), (3, 0, 4)])
def test_arrays_of_other_shapes_are_errors(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    (source,) = find_sources(tmp_path)
    assert source.error
    assert source.error.startswith(f"a.npy holds uint8 {[*shape]}; expected uint8 [H, W], [N, H, W], [H, W, 3]")
    assert source.examples == 1


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path: Path, zipped: bool) -> None:
    """Check that only images are recognized, and that a header that is cut or claims too much is an error."""
    write_idx(tmp_path / "images", np.zeros((2, 3, 4), np.uint8))
    write_idx(tmp_path / "labels", np.zeros(2, np.uint8))
    (tmp_path / "cut").write_bytes((tmp_path / "images").read_bytes()[:15])
    sides = (MAX_PIXELS).to_bytes(4) + (2).to_bytes(4)
    (tmp_path / "large").write_bytes(signature(3) + bytes(4) + sides)
    for path in [*tmp_path.iterdir()] if zipped else []:
        path.write_bytes(gzip.compress(path.read_bytes()))
    found = {source.name: source for source in find_sources(tmp_path)}
    assert (found["images"].kind, found["images"].shape, found["images"].error) == ("idx", (2, 3, 4), None)
    assert (found["labels"].kind, found["labels"].examples) == ("other", 0)
    assert found["cut"].error == "cut is truncated: 15 bytes, the header alone takes 16"
    assert "at most 100,000,000 pixels per image" in str(found["large"].error)


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    (source,) = find_sources(tmp_path)
    assert source.name == "caf\\xe9.png"
    assert source.path.exists()
