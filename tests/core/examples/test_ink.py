"""Test that drawn characters are normalized by their ink, as MNIST's digits were."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from stages.core.examples import picture
from stages.core.examples.ink import centre, white_on_black
from tests.core.examples.pictures import draw_digit, encode


def centred(image_HW: NDArray[np.uint8], side: int = 28) -> NDArray[np.uint8]:
    (fitted_HW,), (blank,) = centre(image_HW[None], side, side)
    assert not blank
    return fitted_HW


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("ink", [0, 128, 255])
def test_ink_of_any_grey_on_transparency(ink: int, mode: str) -> None:
    digit = draw_digit(100, 150, 255, 0)
    drawn = Image.new("L", (100, 150), ink).convert(mode)
    drawn.putalpha(Image.fromarray(digit))
    found = centred(np.asarray(picture.decode(encode(drawn), "a.png", "grey", 10**6, None))).astype(int)
    assert np.abs(found - centred(digit)).mean() < 2


@pytest.mark.parametrize("size", [(200, 300), (300, 200), (64, 64), (1000, 700)])
def test_dark_on_light_is_light_on_dark(size: tuple[int, int]) -> None:
    on_black, on_white = (centred(draw_digit(*size, ink, 255 - ink)).astype(int) for ink in (255, 0))
    pale = centred(draw_digit(*size, 90, 200)).astype(int)
    assert on_black.max() == 255
    for other in (on_white, pale):  # but for rounding, which may move an edge by one of the picture's pixels
        assert np.abs(on_black - other).mean() < 2


def test_the_same_digit_of_any_size_at_any_place() -> None:
    large = draw_digit(400, 600, 0, 255)
    expected = centred(large).astype(int)
    elsewhere = np.full((900, 1400), 255, np.uint8)
    elsewhere[250:850, 30:430] = large
    np.testing.assert_array_equal(centred(elsewhere), expected)
    assert np.abs(centred(draw_digit(100, 150, 0, 255)) - expected).mean() < 6


def test_box_and_centre_of_mass_as_in_mnist() -> None:
    image = centred(draw_digit(400, 600, 0, 255)).astype(float)
    rows, columns = np.flatnonzero(image.max(axis=1) > 0), np.flatnonzero(image.max(axis=0) > 0)
    assert rows[-1] - rows[0] + 1 == 20
    assert columns[-1] - columns[0] + 1 < 20
    # 60,000 of its images have a mean of 14 and a step of one pixel.
    for axis in (0, 1):
        assert abs(image.sum(axis=1 - axis) @ np.arange(28) / image.sum() - 14) <= 0.51
    assert centred(draw_digit(400, 600, 0, 255), 56).max(axis=1).nonzero()[0].size == 40


@pytest.mark.parametrize("ink", [0, 255])
def test_an_image_of_the_models_size_stays(ink: int) -> None:
    faint = draw_digit(28, 28, ink, 255 - ink) // 2 + 60
    expected = faint if ink == 255 else 255 - faint
    np.testing.assert_array_equal(centred(faint), expected)
    np.testing.assert_array_equal(white_on_black(np.stack([faint, expected])), [expected, expected])


@pytest.mark.parametrize("level", [0, 7, 200, 255])
@pytest.mark.parametrize("shape", [(28, 28), (1, 1), (1, 500), (300, 200)])
def test_a_single_grey_level_is_blank(shape: tuple[int, int], level: int) -> None:
    assert centre(np.full((1, *shape), level, np.uint8), 28, 28)[1].all()


@pytest.mark.parametrize("shape", [(28, 28), (300, 200)])
def test_an_empty_page_as_a_camera_sees_it_is_blank(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 8, (1, *shape), np.uint8)
    assert centre(187 + noise, 28, 28)[1].all()


def test_an_empty_page_of_16_bits_is_blank() -> None:
    noise = np.random.default_rng(1).integers(60_000, 60_500, (60, 40), np.uint16)
    page = picture.decode(encode(Image.fromarray(noise)), "a", "grey", 10**6, None)
    assert centre(np.asarray(page)[None], 28, 28)[1].all()


def test_only_the_blank_images_of_several_are_blank() -> None:
    digit = draw_digit(100, 150, 0, 255)
    _, blank_N = centre(np.stack([digit, np.full_like(digit, 255), digit]), 28, 28)
    assert blank_N.tolist() == [False, True, False]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_any_picture_gives_an_image(height: int, width: int, seed: int, dots: int) -> None:
    generator = np.random.default_rng(seed)
    drawn = np.zeros((height, width), np.uint8)
    drawn[generator.integers(height, size=dots), generator.integers(width, size=dots)] = generator.integers(256)
    images, _ = centre(drawn[None], 28, 20)
    assert (images.shape, images.dtype) == ((1, 28, 20), np.dtype(np.uint8))


def test_specks_far_apart() -> None:
    """Scaled in whole grey levels nothing would be left of them."""
    picture = np.full((2000, 2000), 255, np.uint8)
    picture[10:12, 10:12] = picture[1900:1902, 1900:1902] = 0
    image = centred(picture)
    assert (image > 200).sum() == 2
    assert image.max() == 255


def test_ink_of_any_proportions() -> None:
    line = np.full((3, 60_000), 255, np.uint8)
    line[1, 10:-10] = 0
    image = centred(line)
    assert (image.max(axis=0) > 0).sum() == 20
    assert (image.max(axis=1) > 0).sum() == 1
