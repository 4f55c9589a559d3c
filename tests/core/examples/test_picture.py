"""Test that picture files of every kind are opened as they are meant, and that everything else is a clear error."""

import re
import resource
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter, PngImagePlugin, features

from stages.core.examples import picture
from stages.core.examples.picture import ORIENTATION, TURNS, read_header
from stages.core.examples.spec import Color
from stages.core.files.errors import UserError
from tests.core.examples.pictures import deep_png, draw_colors, draw_digit, encode, png

GREYS = np.array([[0, 60, 120], [180, 240, 255]], np.uint8)
COLORS = draw_colors(60, 40)
LIMIT = 100_000_000


def decode(content: bytes, color: Color = "grey", name: str = "a", max_pixels: int = LIMIT) -> NDArray[np.uint8]:
    return np.asarray(picture.decode(content, name, color, max_pixels, None))


def with_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_grey_levels_of_any_mode(mode: str) -> None:
    content = encode(Image.fromarray(GREYS).convert(mode))
    np.testing.assert_array_equal(decode(content), GREYS)
    np.testing.assert_array_equal(decode(content, "rgb"), np.dstack([GREYS] * 3))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_one_bit(format: str) -> None:  # noqa: A002
    bits = np.array([[True, False], [False, True]])
    content = encode(Image.fromarray(bits), format)
    np.testing.assert_array_equal(decode(content), bits * np.uint8(255))
    assert read_header(content, "a").grey


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_colors_are_kept(format: str) -> None:  # noqa: A002
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    content = encode(Image.fromarray(COLORS), format, **options)
    np.testing.assert_array_equal(decode(content, "rgb"), COLORS)
    assert read_header(content, "a") == (60, 40, "RGB", False)


def test_colors_of_jpeg() -> None:
    content = encode(Image.fromarray(COLORS), "JPEG", quality=95, subsampling=0)
    assert np.abs(decode(content, "rgb").astype(int) - COLORS).mean() < 3


@pytest.mark.parametrize("format", ["WEBP", "GIF", "BMP", "TIFF"])
def test_grey_levels_of_other_formats(format: str) -> None:  # noqa: A002
    digit = draw_digit(40, 60, 0, 255)
    assert np.abs(decode(encode(Image.fromarray(digit), format)).astype(int) - digit).mean() < 3


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
def test_compressed_tiff(compression: str) -> None:
    content = encode(Image.fromarray(COLORS), "TIFF", compression=compression)
    assert np.abs(decode(content, "rgb").astype(int) - COLORS).mean() < 6


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
def test_palettes(format: str) -> None:  # noqa: A002
    colored = Image.fromarray(COLORS).quantize(16)
    content = encode(colored, format)
    np.testing.assert_array_equal(decode(content, "rgb"), np.asarray(colored.convert("RGB")))
    assert read_header(content, "a") == (60, 40, "P", False)

    grey = Image.fromarray(draw_digit(40, 60, 0, 255)).convert("RGB").quantize(8)
    content = encode(grey, format)
    np.testing.assert_array_equal(decode(content), np.asarray(grey.convert("L")))
    assert read_header(content, "a").grey


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_colors_of_palettes_become_white(format: str) -> None:  # noqa: A002
    squares = Image.new("P", (4, 1))
    squares.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    squares.putdata([0, 1, 2, 1])
    content = encode(squares, format, transparency=1)
    expected = [[[255, 0, 0], [255] * 3, [0, 0, 255], [255] * 3]]
    np.testing.assert_array_equal(decode(content, "rgb"), expected)


def test_half_transparent_colors_of_palettes() -> None:
    squares = Image.new("P", (3, 1))
    squares.putpalette([255, 0, 0, 0, 0, 0, 0, 0, 255])
    squares.putdata([0, 1, 2])
    found = decode(encode(squares, transparency=bytes([255, 128, 0])), "rgb")
    np.testing.assert_allclose(found, [[[255, 0, 0], [127] * 3, [255] * 3]], atol=1)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_transparent_level_of_few_bits_becomes_white(bits: int) -> None:
    samples = 8 // bits
    content = png(samples, 1, 0, (b"tRNS", b"\0\0"), (b"IDAT", zlib.compress(b"\0\x1b")), depth=bits)
    levels = [(0x1B >> (8 - bits * (index + 1))) & ((1 << bits) - 1) for index in range(samples)]
    shown = [level * 255 // ((1 << bits) - 1) if level else 255 for level in levels]
    if len(set(shown)) == 1:  # White ink on nothing is shown on black.
        shown = [level * 255 for level in levels]
    assert decode(content)[0].tolist() == shown
    middle = png(4, 1, 0, (b"tRNS", b"\0\1"), (b"IDAT", zlib.compress(b"\0\x1b")), depth=2)
    assert decode(middle)[0].tolist() == [0, 255, 170, 255]


def test_a_transparent_color_of_16_bits_becomes_white() -> None:
    levels = np.array([[[0x1234, 0x5678, 0x9ABC], [65535, 0, 0], [0x3412, 0x7856, 0xBC9A]]])
    found = decode(deep_png(levels, (b"tRNS", levels[0, 0].astype(">u2").tobytes())), "rgb")
    assert found.tolist() == [[[255] * 3, [255, 0, 0], [0x34, 0x78, 0xBC]]]


def draw_deep(depth: int) -> NDArray[np.uint16]:
    """Return a 7 with grey levels of so many bits, in pixels of 16."""
    return (draw_digit(40, 60, 255, 0).astype(np.uint32) * (2**depth - 1) // 255).astype(np.uint16)


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_grey_levels_of_fewer_bits_in_16(depth: int, format: str) -> None:  # noqa: A002
    content = encode(Image.fromarray(draw_deep(depth)), format)
    found = decode(content)
    np.testing.assert_array_equal(found, draw_deep(depth) >> (depth - 8))
    np.testing.assert_allclose(found.astype(int), draw_digit(40, 60, 255, 0), atol=1)
    np.testing.assert_array_equal(decode(content, "rgb"), np.dstack([found] * 3))
    assert read_header(content, "a").grey


@pytest.mark.parametrize("depth", [10, 12, 16])
def test_hot_pixels_do_not_darken_the_others(depth: int) -> None:
    levels = np.tile(draw_deep(depth), (3, 3))
    levels[[3, 50], [5, 90]] = 65535
    found = decode(encode(Image.fromarray(levels))).copy()
    assert found[3, 5] == found[50, 90] == 255
    found[[3, 50], [5, 90]] = 0
    np.testing.assert_array_equal(found, np.tile(draw_deep(depth) >> (depth - 8), (3, 3)))


def test_a_transparent_level_of_16_bits_becomes_white() -> None:
    deep = Image.fromarray(GREYS.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    np.testing.assert_array_equal(decode(encode(deep)), GREYS)
    transparent = decode(encode(deep, transparency=60 * 257))
    np.testing.assert_array_equal(transparent, [[0, 255, 120], [180, 240, 255]])


def test_inverted_grey_levels_of_tiff() -> None:
    for levels in (GREYS.astype(np.uint16) * 257, GREYS):
        stored = 65535 - levels if levels.dtype == np.uint16 else levels  # Pillow inverts 8 bits when it saves them.
        content = encode(Image.fromarray(stored), "TIFF", tiffinfo={262: 0})
        np.testing.assert_array_equal(decode(content), GREYS)


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_16_bits_per_channel(planes: int) -> None:
    levels = np.full((40, 60, planes), 65535)
    levels[..., 0] = COLORS[..., 0].astype(int) * 257
    if planes >= 3:
        levels[..., :3] = COLORS.astype(int) * 257
    found = decode(deep_png(levels), "rgb")
    np.testing.assert_array_equal(found, COLORS if planes >= 3 else np.dstack([COLORS[..., 0]] * 3))


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("planes", [2, 3, 4])
def test_colors_of_10_or_12_bits_in_16_are_an_error(bits: int, planes: int) -> None:
    levels = np.full((40, 60, planes), 65535)
    levels[..., : planes - (planes in (2, 4))] = (COLORS[..., :1].astype(int) * 257) >> (16 - bits)
    with pytest.raises(UserError, match=r"^a cannot be read: it uses at most 12 of its 16 bits per channel; save it"):
        decode(deep_png(levels), "rgb")
    large = np.tile(levels, (3, 3, 1))
    large[0, 0, 0] = 65535  # a hot pixel
    with pytest.raises(UserError, match="at most 12 of its 16 bits"):
        decode(deep_png(large), "rgb")


@pytest.mark.parametrize(
    "levels", [np.array([[0, 0.5]], np.float32), np.array([[-1, 5]], np.int32)], ids=["fractions", "negative"]
)
def test_levels_without_a_known_range_are_an_error(levels: NDArray[Any]) -> None:
    with pytest.raises(UserError, match=r"^a cannot be read: its pixels must be whole numbers"):
        decode(encode(Image.fromarray(levels), "TIFF"))


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_only_the_first_frame_or_page_is_decoded(format: str) -> None:  # noqa: A002
    frames = [Image.fromarray(draw_digit(40, 60, ink, 255 - ink)) for ink in (0, 255)]
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    content = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert np.abs(decode(content).astype(int) - draw_digit(40, 60, 0, 255)).mean() < 3


def test_the_first_picture_of_a_phone_with_two() -> None:
    frames = [Image.fromarray(COLORS), Image.fromarray(COLORS).resize((30, 20))]
    content = encode(frames[0], "MPO", save_all=True, append_images=frames[1:], exif=with_orientation(6))
    assert read_header(content, "a")[:2] == (40, 60)
    found = decode(content, "rgb").astype(int)
    assert np.abs(found - np.rot90(COLORS, -1)).mean() < 6


def test_large_texts_and_profiles_do_no_harm() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 2_000_000, zip=True)
    content = encode(Image.fromarray(GREYS), pnginfo=text, icc_profile=bytes(3_000_000))
    np.testing.assert_array_equal(decode(content), GREYS)


def test_color_is_reduced_to_its_luma() -> None:
    primaries = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8))
    np.testing.assert_allclose(decode(encode(primaries)), [[76, 150, 29]], atol=1)  # BT.601: .299, .587, .114


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(mode: str) -> None:
    content = encode(Image.fromarray(draw_digit(40, 60, 0, 255)).convert(mode), "JPEG", quality=95)
    found = decode(content).astype(int)
    assert found.shape == (60, 40)
    assert np.abs(found - draw_digit(40, 60, 0, 255)).mean() < 3
    assert read_header(content, "a") == (40, 60, mode, mode == "L")


def without_adobe(content: bytes) -> bytes:
    """Return a JPEG file without its marker APP14."""
    start = content.index(b"\xff\xee")
    length = int.from_bytes(content[start + 2 : start + 4])
    return content[:start] + content[start + 2 + length :]


def test_cmyk_with_and_without_the_marker_of_adobe() -> None:
    ink = Image.fromarray(COLORS).convert("CMYK")
    adobe = encode(ink, "JPEG", quality=95)  # inverted, as Photoshop does
    assert b"Adobe" in adobe
    plain = without_adobe(encode(ImageChops.invert(ink), "JPEG", quality=95))
    for content in (adobe, plain):
        assert np.abs(decode(content, "rgb").astype(int) - COLORS).mean() < 4
        assert np.abs(decode(content).astype(int) - np.asarray(Image.fromarray(COLORS).convert("L"))).mean() < 4


def test_cmyk_of_tiff() -> None:
    content = encode(Image.fromarray(COLORS).convert("CMYK"), "TIFF")
    np.testing.assert_allclose(decode(content, "rgb"), COLORS, atol=1)


def test_transparency_lies_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)  # black, and opaque, half and not at all
    rgba[..., 3] = [[255, 128, 0]]
    np.testing.assert_allclose(decode(encode(Image.fromarray(rgba))), [[0, 127, 255]], atol=1)
    palette = Image.fromarray(GREYS).convert("P")
    np.testing.assert_array_equal(decode(encode(palette, transparency=palette.getpixel((0, 0))))[0, 0], 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("ink", [0, 255])
def test_ink_on_transparency_is_visible(ink: int, mode: str) -> None:
    drawn = Image.new("L", (100, 150), ink).convert(mode)
    digit = draw_digit(100, 150, 255, 0)
    drawn.putalpha(Image.fromarray(digit))
    np.testing.assert_allclose(decode(encode(drawn)), digit if ink else 255 - digit, atol=1)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_colored_ink_on_transparency(format: str) -> None:  # noqa: A002
    drawn = Image.fromarray(np.dstack([COLORS, np.full((40, 60), 255, np.uint8)]))
    drawn.paste((0, 0, 0, 0), (0, 0, 10, 40))
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    found = decode(encode(drawn, format, **options), "rgb")
    np.testing.assert_array_equal(found[:, 10:], COLORS[:, 10:])
    assert (found[:, :10] == 255).all()


def test_light_ink_with_grey_edges_on_a_transparent_level() -> None:
    digit = draw_digit(100, 150, 255, 0)
    for format in ("PNG", "GIF"):  # noqa: A001
        np.testing.assert_array_equal(decode(encode(Image.fromarray(digit), format, transparency=0)), digit)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(draw_deep(16)), transparency=0)), draw_deep(16) >> 8)


def test_dark_ink_on_light_paper_with_transparent_corners() -> None:
    page = np.dstack([draw_digit(100, 150, 0, 255)] * 3 + [np.full((150, 100), 255, np.uint8)])
    page[:20, :20, 3] = page[-20:, -20:, 3] = 0
    np.testing.assert_array_equal(decode(encode(Image.fromarray(page))), page[..., 0])


INVERSE = {**TURNS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


@pytest.mark.parametrize("value", [*range(1, 9), 0, 9, 255])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_orientation(format: str, value: int) -> None:  # noqa: A002
    upright = Image.fromarray(COLORS)
    turned = upright.transpose(INVERSE[value]) if value in INVERSE else upright
    lossless: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}
    if format == "TIFF" and value not in range(1, 9):
        return
    content = encode(turned, format, exif=with_orientation(value), **lossless.get(format, {}))
    assert read_header(content, "a")[:2] == (60, 40)
    assert np.abs(decode(content, "rgb").astype(int) - COLORS).mean() < 4


def test_orientation_behind_the_pixels_of_png() -> None:
    plain = encode(Image.fromarray(COLORS).transpose(Image.Transpose.ROTATE_90))
    exif = with_orientation(6).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    content = plain[:-12] + chunk + plain[-12:]
    assert read_header(content, "a")[:2] == (60, 40)
    np.testing.assert_array_equal(decode(content, "rgb"), COLORS)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*\0\0\xff\xff", b"x"]
)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's
def test_damaged_exif_does_no_harm(format: str, exif: bytes) -> None:  # noqa: A002
    content = encode(Image.fromarray(COLORS), format, exif=b"Exif\0\0" + exif)
    assert read_header(content, "a")[:2] == (60, 40)
    assert decode(content, "rgb").shape == COLORS.shape


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.txt", "a"])
def test_the_suffix_does_not_matter(name: str) -> None:
    np.testing.assert_array_equal(decode(encode(Image.fromarray(GREYS), "BMP"), name=name), GREYS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a picture: it is empty"),
        (b"hello", "is not a picture: its 5 bytes are none of PNG, JPEG, WEBP, GIF, BMP, TIFF"),
        (b"\n <!DOCTYPE html><html><body>404</body></html>", "is not a picture: it is an HTML page"),
        (b"<HTML><head>", "is not a picture: it is an HTML page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "is not a picture: it is a pointer of Git LFS; `git lfs pull` fetches the picture itself",
        ),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "is not a picture: it is an AVIF file; save it as PNG, JPEG or WebP"),
        (encode(Image.new("L", (9, 9)), "PPM"), "is not a picture"),
        (encode(Image.new("L", (90, 90)))[:-30], "cannot be read"),
        (encode(Image.effect_noise((90, 90), 50), "JPEG")[:-900], "cannot be read"),
        (png(2, 2, 0, (b"IDAT", b"no zlib stream")), "cannot be read"),
        (png(2, 2, 0), "cannot be read"),
        (
            png(1, 1, 0, (b"zTXt", b"a\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_MEMORY + 1)))),
            "cannot be read",
        ),
        (
            png(1, 1, 0, (b"iCCP", b"a\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_MEMORY + 1)))),
            "cannot be read",
        ),
    ],
)
def test_what_is_not_a_picture_is_an_error(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"^a picture.png .*{re.escape(message)}"):
        decode(content, name="a picture.png")


@pytest.mark.skipif("HEIF" in picture.FORMATS, reason="pillow-heif is installed")
@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"heix", b"heim", b"heis"])
def test_heic_needs_a_package(brand: bytes) -> None:
    content = b"\0\0\0\x18ftyp" + brand + bytes(100)
    assert picture.SIGNATURES.match(content)
    with pytest.raises(UserError, match=r"^a.heic is not a picture: it is a HEIC file, .*`pip install pillow-heif`"):
        read_header(content, "a.heic")


@pytest.mark.parametrize("format", picture.FORMATS)
def test_every_format_has_a_signature(format: str) -> None:  # noqa: A002
    assert picture.SIGNATURES.match(encode(Image.fromarray(COLORS), format)[:32])


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's
def test_a_picture_truncated_at_any_byte_is_an_error_or_complete(format: str, options: dict[str, Any]) -> None:  # noqa: A002
    content = encode(Image.fromarray(COLORS[:20, :30]), format, **options)
    complete = decode(content, "rgb")
    errors = 0
    for end in range(len(content)):
        try:
            np.testing.assert_array_equal(decode(content[:end], "rgb"), complete)
        except UserError as error:
            assert str(error).startswith("a ")  # noqa: PT017
            errors += 1
    assert errors > 0.8 * len(content)


def test_a_decompression_bomb_is_not_decoded() -> None:
    rows = zlib.compress(bytes(30_001 * 3000))
    bomb = png(30_000, 30_000, 0, (b"IDAT", rows))
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_header(bomb, "a")[:2] == (30_000, 30_000)
    with pytest.raises(UserError, match=r"^a has 30,000 x 30,000 pixels, more than the limit of 100,000,000$"):
        decode(bomb)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("format", picture.FORMATS)
def test_the_limit_on_pixels_is_a_setting(format: str) -> None:  # noqa: A002
    content = encode(Image.fromarray(COLORS), format)
    assert decode(content, max_pixels=2400).shape == (40, 60)
    with pytest.raises(UserError, match=r"^a has 60 x 40 pixels, more than the limit of 2,399$"):
        decode(content, max_pixels=2399)


def make_photo(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(1).integers(256, size=(height, width, 3), dtype=np.uint8)
    blurred = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(4))
    return blurred.point(lambda level: max(0, min(255, (level - 128) * 6 + 128)))


@pytest.mark.parametrize("color", ["grey", "rgb"])
@pytest.mark.parametrize("value", [1, 6])
def test_a_jpeg_decoded_at_a_part_of_its_size_looks_the_same(value: int, color: Color) -> None:
    content = encode(make_photo(800, 600), "JPEG", quality=90, exif=with_orientation(value))
    needed_sizes: list[tuple[int, int]] = []

    def needed(width: int, height: int) -> tuple[int, int]:
        needed_sizes.append((width, height))
        return (32, 24) if value == 1 else (24, 32)

    small = picture.decode(content, "a", color, LIMIT, needed)
    assert needed_sizes == [(800, 600) if value == 1 else (600, 800)]
    assert small.size == ((100, 75) if value == 1 else (75, 100))
    full = picture.decode(content, "a", color, LIMIT, None).resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(full)).mean() < 3


@pytest.mark.parametrize("needed", [(400, 300), (401, 1), (1000, 1000), (1, 1)])
def test_a_jpeg_is_decoded_at_twice_the_needed_size_at_least(needed: tuple[int, int]) -> None:
    content = encode(Image.new("RGB", (800, 600)), "JPEG")
    size = picture.decode(content, "a", "rgb", LIMIT, lambda *_: needed).size
    assert all(side >= min(2 * wanted, whole) for side, wanted, whole in zip(size, needed, (800, 600), strict=True))


def test_a_jpeg_of_60_megapixels_takes_little_memory() -> None:
    content = encode(Image.new("RGB", (10_000, 6000), (200, 100, 50)), "JPEG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = picture.decode(content, "a", "rgb", LIMIT, lambda *_: (64, 64))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; all pixels would take 180,000
    assert found.size == (1250, 750)
    np.testing.assert_allclose(np.asarray(found)[0, 0], (200, 100, 50), atol=3)


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "LARGE", 1000)
    running, most = [0], [0]
    to_pixels = picture.to_pixels

    def count(opened: Any, color: Color) -> Image.Image:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.01)
        running[0] -= 1
        return to_pixels(opened, color)

    monkeypatch.setattr(picture, "to_pixels", count)
    content = encode(Image.fromarray(COLORS))
    threads = [threading.Thread(target=decode, args=(content,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def try_to_open(content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what it can do without
        for open_it in (lambda: decode(content, max_pixels=100_000), lambda: read_header(content, "a")):
            try:
                open_it()
            except UserError as error:
                assert str(error).startswith("a ")  # noqa: PT017


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(picture.FORMATS), st.data())
def test_damage_is_a_user_error(format: str, data: st.DataObject) -> None:  # noqa: A002
    content = bytearray(encode(Image.fromarray(draw_digit(20, 30, 0, 255)).convert("RGB"), format))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try_to_open(bytes(content))


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x10\0\0\0WEBP", b"GIF89a", b"BM", b"II*\0"]),
    st.binary(max_size=300),
)
def test_any_bytes_are_a_user_error_or_a_picture(start: bytes, rest: bytes) -> None:
    try_to_open(start + rest)


def test_this_build_of_pillow_reads_all_formats() -> None:
    assert all(features.check(name) for name in ("jpg", "zlib", "webp", "libtiff"))
