"""Test how a picture becomes the input of a model, and what the report says and shows of images."""

import base64
import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin

from stages.core.examples.image import (
    MAX_PIXELS,
    adversarial,
    decode,
    describe,
    draw,
    fit,
    specify,
    summarize,
    white_on_black,
)
from stages.core.files.errors import UserError

GREYS = np.array([[0, 60, 120], [180, 240, 255]], np.uint8)


def encode(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:  # noqa: A002  # Pillow's name
    content = io.BytesIO()
    picture.save(content, format, **options)
    return content.getvalue()


def png(width: int, height: int, color_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file of 8 bits a sample with these chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )


def draw_digit(width: int, height: int, ink: int, paper: int) -> NDArray[np.uint8]:
    """Return a large 7, drawn four times as large and reduced, so that its edges are smooth."""
    picture = Image.new("L", (4 * width, 4 * height), paper)
    across, down = 4 * width / 200, 4 * height / 300
    points = [(x * across, y * down) for x, y in ((50, 60), (150, 60), (90, 240))]
    ImageDraw.Draw(picture).line(points, ink, width=round(18 * across), joint="curve")
    return np.array(picture.resize((width, height), Image.Resampling.BOX))


def centred(image_HW: NDArray[np.uint8], side: int = 28) -> NDArray[np.uint8]:
    (fitted_HW,), (blank,) = fit(image_HW[None], side, side, centre_ink=True)
    assert not blank
    return fitted_HW


def resized(image_HW: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    (fitted_HW,), (blank,) = fit(image_HW[None], height, width, centre_ink=False)
    assert not blank
    return fitted_HW


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


def bits(depth: int) -> NDArray[np.uint16]:
    """Return a 7 with grey levels of so many bits, in pixels of 16."""
    return (draw_digit(40, 60, 255, 0).astype(np.uint32) * (2**depth - 1) // 255).astype(np.uint16)


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_grey_levels_of_fewer_bits_in_16(depth: int, format: str) -> None:  # noqa: A002
    found = decode(encode(Image.fromarray(bits(depth)), format), "a")
    np.testing.assert_array_equal(found, bits(depth) >> (depth - 8))
    np.testing.assert_allclose(found.astype(int), draw_digit(40, 60, 255, 0), atol=1)


def test_an_empty_page_of_16_bits_is_blank() -> None:
    noise = np.random.default_rng(1).integers(60_000, 60_500, (1, 60, 40), np.uint16)
    assert fit(decode(encode(Image.fromarray(noise[0])), "a")[None], 28, 28, centre_ink=True)[1].all()


@pytest.mark.parametrize(
    "levels", [np.array([[0, 0.5]], np.float32), np.array([[-1, 5]], np.int32)], ids=["fractions", "negative"]
)
def test_levels_without_a_known_range_are_an_error(levels: NDArray[Any]) -> None:
    with pytest.raises(UserError, match=r"^a cannot be read: its pixels must be whole numbers"):
        decode(encode(Image.fromarray(levels), "TIFF"), "a")


@pytest.mark.parametrize("format", ["WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats(format: str) -> None:  # noqa: A002
    digit = draw_digit(40, 60, 0, 255)
    found = decode(encode(Image.fromarray(digit), format), "a").astype(int)
    assert np.abs(found - digit).mean() < 3


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(draw_digit(40, 60, ink, 255 - ink)) for ink in (0, 255)]
    found = decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), "a").astype(int)
    assert np.abs(found - draw_digit(40, 60, 0, 255)).mean() < 3


def test_large_texts_and_profiles_do_no_harm() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 2_000_000, zip=True)
    content = encode(Image.fromarray(GREYS), pnginfo=text, icc_profile=bytes(3_000_000))
    np.testing.assert_array_equal(decode(content, "a.png"), GREYS)


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


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("ink", [0, 128, 255])
def test_ink_of_any_grey_on_transparency(ink: int, mode: str) -> None:
    digit = draw_digit(100, 150, 255, 0)
    picture = Image.new("L", (100, 150), ink).convert(mode)
    picture.putalpha(Image.fromarray(digit))
    found = centred(decode(encode(picture), "a.png")).astype(int)
    assert np.abs(found - centred(digit)).mean() < 2


def test_light_ink_with_grey_edges_on_a_transparent_level() -> None:
    digit = draw_digit(100, 150, 255, 0)
    for format in ("PNG", "GIF"):  # noqa: A001
        np.testing.assert_array_equal(decode(encode(Image.fromarray(digit), format, transparency=0), "a"), digit)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(bits(16)), transparency=0), "a"), bits(16) >> 8)


def test_dark_ink_on_light_paper_with_transparent_corners() -> None:
    page = np.dstack([draw_digit(100, 150, 0, 255)] * 3 + [np.full((150, 100), 255, np.uint8)])
    page[:20, :20, 3] = page[-20:, -20:, 3] = 0
    np.testing.assert_array_equal(decode(encode(Image.fromarray(page)), "a.png"), page[..., 0])


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
        (b"", "is not a picture: it is empty"),
        (b"hello", "is not a picture: its 5 bytes are none of PNG, JPEG, WEBP, GIF, BMP, TIFF"),
        (encode(Image.new("L", (9, 9)), "PPM"), "is not a picture"),
        (encode(Image.new("L", (90, 90)))[:-30], "cannot be read"),
        (encode(Image.effect_noise((90, 90), 50), "JPEG")[:-900], "cannot be read"),
        (png(2, 2, 0, (b"IDAT", b"no zlib stream")), "cannot be read"),
        (png(2, 2, 0), "cannot be read"),
        (png(7000, 7200, 0, (b"IDAT", zlib.compress(b""))), "7,000 x 7,200 pixels, allowed: at most 50,000,000"),
        (png(10_000, 10_000, 0), "allowed"),
        (png(100_000, 100_000, 0), "more than the 50,000,000 pixels that are allowed"),
        (
            png(1, 1, 0, (b"zTXt", b"a\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_MEMORY + 1)))),
            "cannot be read",
        ),
    ],
)
def test_what_is_not_a_picture_is_an_error(content: bytes, message: str) -> None:
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
@pytest.mark.parametrize("centre_ink", [True, False])
def test_a_single_grey_level_is_blank(shape: tuple[int, int], level: int, centre_ink: bool) -> None:
    assert fit(np.full((1, *shape), level, np.uint8), 28, 28, centre_ink=centre_ink)[1].all()


@pytest.mark.parametrize("shape", [(28, 28), (300, 200)])
def test_an_empty_page_as_a_camera_sees_it_is_blank(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 8, (1, *shape), np.uint8)
    assert fit(187 + noise, 28, 28, centre_ink=True)[1].all()


def test_what_is_lost_by_resizing_is_blank() -> None:
    speck = np.zeros((1, 6000, 6000), np.uint8)
    speck[0, 3000, 3000] = 255
    assert fit(speck, 28, 28, centre_ink=False)[1].all()


def test_only_the_blank_images_of_several_are_blank() -> None:
    digit = draw_digit(100, 150, 0, 255)
    for centre_ink in (True, False):
        _, blank_N = fit(np.stack([digit, np.full_like(digit, 255), digit]), 28, 28, centre_ink=centre_ink)
        assert blank_N.tolist() == [False, True, False]


def test_without_centre_ink_pixels_are_taken_as_they_are() -> None:
    """Dark on light, the pixels are neither moved nor inverted."""
    image = draw_digit(28, 28, 60, 200)
    image[:14] = 200
    np.testing.assert_array_equal(resized(image, 28, 28), image)
    enlarged = image.repeat(10, axis=0).repeat(10, axis=1)
    np.testing.assert_array_equal(resized(enlarged, 28, 28), image)


def test_without_centre_ink_the_whole_picture_is_resized() -> None:
    """Each pixel is the mean of the area that it stands for."""
    picture = np.random.default_rng(1).integers(256, size=(90, 40), dtype=np.uint8)
    means = picture.reshape(30, 3, 20, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(resized(picture, 30, 20), means, atol=1)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_any_picture_gives_an_image(height: int, width: int, seed: int, dots: int) -> None:
    generator = np.random.default_rng(seed)
    picture = np.zeros((height, width), np.uint8)
    picture[generator.integers(height, size=dots), generator.integers(width, size=dots)] = generator.integers(256)
    for centre_ink in (True, False):
        images, _ = fit(picture[None], 28, 28, centre_ink=centre_ink)
        assert images.shape == (1, 28, 28)
        assert images.dtype == np.uint8


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


def make_images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(256, size=(count, 1, 6, 5), dtype=np.uint8)


def test_the_spec_of_images() -> None:
    spec = specify((1, 6, 5), ["a", "b"], 0.1, 0.3, centre_ink=True)
    assert (spec.kind, spec.shape, spec.dtype) == ("image", (1, 6, 5), "uint8")
    assert (spec.classes, spec.mean, spec.std, spec.centre_ink) == (["a", "b"], 0.1, 0.3, True)


def test_images_are_described_by_mean_and_deviation() -> None:
    images = make_images(50)
    described = describe(images)
    assert [*described] == ["pixel_mean", "pixel_std"]
    for values, expected in zip(described.values(), (images.mean((1, 2, 3)), images.std((1, 2, 3))), strict=True):
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize("level", [0, 1, 7, 100, 254, 255])
def test_the_deviation_of_a_constant_image_is_exactly_zero(level: int) -> None:
    """The schema of the examples relies on it."""
    for shape in ((28, 28), (3, 3), (301, 299)):
        described = describe(np.full((2, 1, *shape), level, np.uint8))
        assert described["pixel_std"].tolist() == [0, 0]
        assert described["pixel_mean"].tolist() == [level, level]


def test_the_summary_is_of_all_pixels() -> None:
    images = make_images(50)
    images[3] //= 10
    summary = summarize(pl.DataFrame(describe(images)))
    means = images.mean((1, 2, 3))
    expected = {"mean": images.mean(), "deviation": images.std(), "darkest": means.min(), "brightest": means.max()}
    assert summary == pytest.approx(expected, rel=1e-5)


def test_adversarial_images_are_of_the_spec() -> None:
    spec = specify((1, 6, 5), ["a", "b"], 0.1, 0.3, centre_ink=True)
    made = adversarial(spec, 40, seed=1)
    assert {name: inputs.shape for name, inputs in made.items()} == {
        "all_0": (1, 1, 6, 5),
        "all_255": (1, 1, 6, 5),
        "noise": (40, 1, 6, 5),
    }
    assert {inputs.dtype for inputs in made.values()} == {np.dtype(np.uint8)}
    assert set(made["all_0"].flat) == {0}
    assert set(made["all_255"].flat) == {255}
    assert (made["noise"].min(), made["noise"].max()) == (0, 255)
    np.testing.assert_array_equal(adversarial(spec, 40, seed=1)["noise"], made["noise"])
    assert not np.array_equal(adversarial(spec, 40, seed=2)["noise"], made["noise"])


def test_images_are_drawn_side_by_side() -> None:
    images = make_images(3)
    kind, _, content = draw(images).partition(",")
    assert kind == "data:image/png;base64"
    drawn = decode(base64.b64decode(content), "drawn")
    np.testing.assert_array_equal(drawn, np.concatenate([*images[:, 0]], axis=1))
