import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin

from serving.images import MAX_PIXELS, decode, fit, white_on_black
from stages.core.errors import UserError

GREYS = np.array([[0, 60, 120], [180, 240, 255]], np.uint8)


def encode(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:  # noqa: A002  # Pillow's name
    content = io.BytesIO()
    picture.save(content, format, **options)
    return content.getvalue()


def png(width: int, height: int, color_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of 8 bits a sample with these chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )


def draw_digit(width: int, height: int, ink: int, paper: int) -> NDArray[np.uint8]:
    """A large 7, drawn four times as large and reduced, so that its edges are smooth."""
    picture = Image.new("L", (4 * width, 4 * height), paper)
    across, down = 4 * width / 200, 4 * height / 300
    points = [(x * across, y * down) for x, y in ((50, 60), (150, 60), (90, 240))]
    ImageDraw.Draw(picture).line(points, ink, width=round(18 * across), joint="curve")
    return np.array(picture.resize((width, height), Image.Resampling.BOX))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_grey_levels_of_any_mode(mode: str) -> None:
    picture = Image.fromarray(GREYS).convert(mode)
    np.testing.assert_array_equal(decode(encode(picture), "a.png"), GREYS)


def test_grey_levels_of_16_bits_and_of_1() -> None:
    deep = Image.fromarray(GREYS.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    np.testing.assert_array_equal(decode(encode(deep), "a.png"), GREYS)
    transparent = decode(encode(deep, transparency=60 * 257), "a.png")
    np.testing.assert_array_equal(transparent, [[0, 255, 120], [180, 240, 255]])
    bits = np.array([[True, False], [False, True]])
    np.testing.assert_array_equal(decode(encode(Image.fromarray(bits)), "a.png"), bits * np.uint8(255))


def test_color_is_its_luma() -> None:
    picture = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8))
    np.testing.assert_allclose(decode(encode(picture), "a.png"), [[76, 150, 29]], atol=1)  # BT.601: .299, .587, .114


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(mode: str) -> None:
    picture = Image.fromarray(draw_digit(40, 60, 0, 255)).convert(mode)
    found = decode(encode(picture, "JPEG", quality=95), "a.jpg").astype(int)
    assert found.shape == (60, 40)
    assert np.abs(found - draw_digit(40, 60, 0, 255)).mean() < 3


def test_transparency_lies_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)  # black, and opaque, half and not at all
    rgba[..., 3] = [[255, 128, 0]]
    np.testing.assert_allclose(decode(encode(Image.fromarray(rgba)), "a.png"), [[0, 127, 255]], atol=1)
    palette = Image.fromarray(GREYS).convert("P")
    np.testing.assert_array_equal(decode(encode(palette, transparency=palette.getpixel((0, 0))), "a.png")[0, 0], 255)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_orientation(format: str) -> None:  # noqa: A002
    upright = draw_digit(40, 60, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    found = decode(encode(turned, format, exif=exif), "a").astype(int)
    assert found.shape == (60, 40)
    assert np.abs(found - upright).mean() < 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no picture: it is empty"),
        (b"hello", "is no picture: its 5 bytes are neither PNG nor JPEG"),
        (encode(Image.new("L", (9, 9)), "GIF"), "is no picture"),
        (encode(Image.new("L", (90, 90)))[:-30], "is damaged"),
        (encode(Image.effect_noise((90, 90), 50), "JPEG")[:-900], "is damaged"),
        (png(2, 2, 0, (b"IDAT", b"no zlib stream")), "is damaged"),
        (png(2, 2, 0), "is damaged"),
        (png(7000, 7200, 0, (b"IDAT", zlib.compress(b""))), "7,000 x 7,200 pixels, allowed are 50,000,000"),
        (png(10_000, 10_000, 0), "allowed"),
        (png(100_000, 100_000, 0), "more than the 50,000,000 pixels that are allowed"),
        (png(1, 1, 0, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * PngImagePlugin.MAX_TEXT_CHUNK)))), "is damaged"),
    ],
)
def test_what_is_no_picture_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"^a picture.png .*{message}"):
        decode(content, "a picture.png")


def test_many_pixels_are_allowed() -> None:
    assert decode(encode(Image.new("1", (MAX_PIXELS // 5000, 5000))), "a.png").shape == (5000, MAX_PIXELS // 5000)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(["PNG", "JPEG"]), st.data())
def test_damage_is_a_user_error(format: str, data: st.DataObject) -> None:  # noqa: A002
    content = bytearray(encode(Image.fromarray(draw_digit(20, 30, 0, 255)).convert("RGB"), format))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what it can do without
        try:
            decode(bytes(content), "a")
        except UserError as error:
            assert str(error).startswith("a ")  # noqa: PT017


@pytest.mark.parametrize("size", [(200, 300), (300, 200), (64, 64), (1000, 700)])
def test_dark_on_light_is_light_on_dark(size: tuple[int, int]) -> None:
    on_black, on_white = (fit(draw_digit(*size, ink, 255 - ink), 28, 28).astype(int) for ink in (255, 0))
    pale = fit(draw_digit(*size, 90, 200), 28, 28).astype(int)
    assert on_black.max() == 255
    for other in (on_white, pale):  # but for rounding, which may move an edge by one of the picture's pixels
        assert np.abs(on_black - other).mean() < 2


def test_the_same_digit_of_any_size_at_any_place() -> None:
    large = draw_digit(400, 600, 0, 255)
    expected = fit(large, 28, 28).astype(int)
    elsewhere = np.full((900, 1400), 255, np.uint8)
    elsewhere[250:850, 30:430] = large
    np.testing.assert_array_equal(fit(elsewhere, 28, 28), expected)
    assert np.abs(fit(draw_digit(100, 150, 0, 255), 28, 28) - expected).mean() < 6


def test_box_and_centre_of_mass_as_in_mnist() -> None:
    image = fit(draw_digit(400, 600, 0, 255), 28, 28).astype(float)
    rows, columns = np.flatnonzero(image.max(axis=1) > 0), np.flatnonzero(image.max(axis=0) > 0)
    assert rows[-1] - rows[0] + 1 == 20
    assert columns[-1] - columns[0] + 1 < 20
    # what 60,000 of its images have: a mean of 14 and a step of one pixel
    for axis in (0, 1):
        assert abs(image.sum(axis=1 - axis) @ np.arange(28) / image.sum() - 14) <= 0.51
    assert fit(draw_digit(400, 600, 0, 255), 56, 56).max(axis=1).nonzero()[0].size == 40


@pytest.mark.parametrize("ink", [0, 255])
def test_an_image_of_the_models_size_stays(ink: int) -> None:
    faint = draw_digit(28, 28, ink, 255 - ink) // 2 + 60
    expected = faint if ink == 255 else 255 - faint
    np.testing.assert_array_equal(fit(faint, 28, 28), expected)
    np.testing.assert_array_equal(white_on_black(np.stack([faint, expected])), [expected, expected])


@pytest.mark.parametrize("level", [0, 7, 200, 255])
@pytest.mark.parametrize("shape", [(28, 28), (1, 1), (1, 500), (300, 200)])
def test_blank_is_all_0(shape: tuple[int, int], level: int) -> None:
    blank = np.full(shape, level, np.uint8)
    np.testing.assert_array_equal(fit(blank, 28, 28), np.zeros((28, 28)))
    if shape == (300, 200):  # as a camera sees it
        noisy = blank // 2 + 60 + np.random.default_rng(1).integers(0, 8, shape, np.uint8)
        np.testing.assert_array_equal(fit(noisy, 28, 28), np.zeros((28, 28)))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_any_picture_gives_an_image(height: int, width: int, seed: int, dots: int) -> None:
    generator = np.random.default_rng(seed)
    picture = np.zeros((height, width), np.uint8)
    picture[generator.integers(height, size=dots), generator.integers(width, size=dots)] = generator.integers(256)
    image = fit(picture, 28, 28)
    assert image.shape == (28, 28)
    assert image.dtype == np.uint8


def test_specks_far_apart() -> None:
    """Scaled in whole grey levels nothing would be left of them."""
    picture = np.full((2000, 2000), 255, np.uint8)
    picture[10:12, 10:12] = picture[1900:1902, 1900:1902] = 0
    image = fit(picture, 28, 28)
    assert (image > 200).sum() == 2
    assert image.max() == 255


def test_ink_of_any_proportions() -> None:
    line = np.full((3, 60_000), 255, np.uint8)
    line[1, 10:-10] = 0
    image = fit(line, 28, 28)
    assert (image.max(axis=0) > 0).sum() == 20
    assert (image.max(axis=1) > 0).sum() == 1
