"""Test that pictures which look the same are found, and only those."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.core.examples.image import fit
from stages.core.examples.likeness import find_alike, hash_pictures
from stages.core.examples.spec import Opening

OPENING = Opening(color="rgb", resize="fit", centre_ink=False, max_pixels=10**8)


def make_photo(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return colours whose amplitudes fall with the frequency, as those of natural photographs do."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))[..., None]
    levels = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) / np.maximum(frequency, 1 / max(height, width)), axes=(0, 1))
    low, high = np.percentile(levels.real, [1, 99])
    return np.clip((levels.real - low) / (high - low) * 255, 0, 255).astype(np.uint8)


def shifted(seed: int, height: int, width: int) -> list[NDArray[np.uint8]]:
    """Return a photo and its 8 neighbours, shifted by a pixel; the photo itself is the first."""
    large = make_photo(seed, height + 2, width + 2)
    places = [(1, 1), *((y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1))]
    return [large[y : y + height, x : x + width] for y, x in places]


@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 32), (64, 64, 64), (150, 200, 64), (200, 150, 64)])
def test_neighbours_are_found_and_unrelated_pictures_are_not(height: int, width: int, side: int) -> None:
    photos = [shifted(seed, height, width) for seed in range(10)]
    unrelated = [make_photo(seed, height, width) for seed in range(100, 200)]
    pictures = np.stack([*(copies[0] for copies in photos), *(copy for copies in photos for copy in copies[1:])])
    inputs, _ = fit(np.concatenate([pictures, unrelated]), (3, side, side), OPENING)
    found = find_alike(inputs, np.arange(10, len(inputs)), np.arange(10))
    assert found[:80].tolist() == np.repeat(np.arange(10), 8).tolist()
    assert set(found[80:]) == {-1}


def test_copies_of_other_brightness_and_contrast_are_found() -> None:
    inputs = np.stack([make_photo(seed, 48, 48) for seed in range(20)]).transpose(0, 3, 1, 2)
    changed = (inputs * 0.6 + 40).astype(np.uint8)
    both = np.concatenate([inputs, changed])
    assert find_alike(both, np.arange(20, 40), np.arange(20)).tolist() == [*range(20)]


def test_of_several_equal_pictures_the_first_is_found() -> None:
    inputs = np.stack([make_photo(seed, 32, 32) for seed in (1, 2, 2, 2, 3, 2)]).transpose(0, 3, 1, 2)
    assert find_alike(inputs, np.array([5]), np.arange(5)).tolist() == [1]
    assert find_alike(inputs, np.array([5, 0]), np.array([3, 2])).tolist() == [3, -1]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 50), (3, 2, 3), (1, 28, 28)])
def test_blank_and_tiny_pictures_are_like_nothing(shape: tuple[int, ...]) -> None:
    inputs = np.stack([np.full(shape, level, np.uint8) for level in (0, 0, 7, 255)])
    assert find_alike(inputs, np.arange(2), np.arange(2, 4)).tolist() == [-1, -1]
    assert hash_pictures(inputs).tolist() == [0] * 4


def test_nothing_to_compare_gives_nothing() -> None:
    inputs = np.zeros((3, 1, 8, 8), np.uint8)
    none = np.array([], np.int64)
    assert find_alike(inputs, none, np.arange(3)).tolist() == []
    assert find_alike(inputs, np.arange(3), none).tolist() == [-1, -1, -1]


def test_the_hash_says_where_it_becomes_lighter() -> None:
    rising = np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1))[None, None]
    falling = rising[..., ::-1]
    assert hash_pictures(rising).tolist() == [2**64 - 1]
    assert hash_pictures(falling).tolist() == [0]
    half = np.concatenate([rising[:, :, :4], falling[:, :, 4:]], axis=2)
    assert hash_pictures(half).tolist() == [0xFFFFFFFF00000000]
    assert hash_pictures(half.repeat(5, axis=2).repeat(7, axis=3)).tolist() == [0xFFFFFFFF00000000]


def test_copies_are_found_among_many() -> None:
    inputs = np.random.default_rng(1).integers(256, size=(25_000, 1, 32, 32), dtype=np.uint8)
    inputs[:10] = inputs[-10:]
    found = find_alike(inputs, np.arange(5000), np.arange(5000, 25_000))
    assert found[:10].tolist() == [*range(24_990, 25_000)]
    assert set(found[10:]) == {-1}
