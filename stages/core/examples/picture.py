"""Open picture files: recognize them, read their headers, and decode them to pixels of one colour model.

The pipeline, the service and the predictions for folders all open pictures here, so a model sees the same pixels
everywhere. Shape suffixes: H x W pixels.
"""

import io
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from stages.core.examples.ink import MIN_CONTRAST
from stages.core.examples.spec import Color
from stages.core.files.errors import UserError

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]
SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
SIGNATURES = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF.{4}WEBP|GIF8[79]a|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|.{4}ftyp(hei[cs]|mif1)",
    re.DOTALL,
)
with suppress(ImportError):  # It is an optional package.
    from pillow_heif import register_heif_opener  # type: ignore[import-not-found]

    register_heif_opener()
    FORMATS.append("HEIF")
    SUFFIXES += [".heic", ".heif"]

ORIENTATION = 0x0112  # EXIF's tag; its values from 5 on exchange width and height.
BYTES_PER_PIXEL = 8  # PNG, the largest format, has at most this many.
DEPTHS = (8, 10, 12, 14, 16, 32)  # bits per pixel that cameras and scanners use
GREY_MODES = {"1", "L", "LA", "La", "I", "F"}
LARGE = 10_000_000  # pixels; larger pictures are decoded one at a time, because each takes a lot of memory
ONE_AT_A_TIME = threading.Lock()

# This module checks the number of pixels itself, because the limit is a setting.
Image.MAX_IMAGE_PIXELS = None
# Colour profiles and texts of a megabyte are common, so a single one may take what Pillow allows for all together.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


class Header(NamedTuple):
    """Hold what the beginning of a picture file says."""

    width: int  # of the upright picture
    height: int
    mode: str  # Pillow's name, such as L, RGB, CMYK or P
    grey: bool  # The mode has no colours.


def read_header(content: bytes, name: str) -> Header:
    """Return the header of a picture file; raise `UserError` with its name if it is not a picture."""
    with opened(content, name) as picture:
        width, height = upright_size(picture)
        return Header(width, height, picture.mode, is_grey(picture))


def decode(
    content: bytes, name: str, color: Color, max_pixels: int, needed: Callable[[int, int], tuple[int, int]] | None
) -> Image.Image:
    """Return the pixels of a picture file, upright, as mode "L" (luma of ITU-R BT.601) or "RGB".

    Of an animation, only the first frame is decoded. Transparent parts are shown on white, but on black if less than
    half of the picture is opaque and that part is light, or if nothing would be visible on white.

    `needed` returns the width and height that are needed of a picture of a width and height: a JPEG file is decoded at
    1/2, 1/4 or 1/8 of its size if that is still twice as large; without it, at its full size. Raises `UserError` with the file's name if the content is in none of the `FORMATS`, is
    damaged, or has more than `max_pixels`, which its header says before anything is decoded.
    """
    with opened(content, name) as picture:
        pixels = picture.width * picture.height
        if pixels > max_pixels:
            size = f"{picture.width:,} x {picture.height:,} pixels"
            raise UserError(f"{name} has {size}, more than the limit of {max_pixels:,}")
        if needed:
            width, height = needed(*upright_size(picture))
            sides = (height, width) if swaps_sides(picture) else (width, height)
            picture.draft("L" if color == "grey" else "RGB", (2 * sides[0], 2 * sides[1]))
        if picture.width * picture.height > LARGE:
            with ONE_AT_A_TIME:
                return to_pixels(picture, color)
        return to_pixels(picture, color)


@contextmanager
def opened(content: bytes, name: str) -> Iterator[ImageFile.ImageFile]:
    """Open the content of a picture file; turn whatever Pillow raises into a `UserError` with the file's name."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            yield picture
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{name} is not a picture: {what_it_is(content)}") from None
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions.
        raise UserError(f"{name} cannot be read: {error}") from error


def what_it_is(content: bytes) -> str:
    """Describe content that is in no format of pictures."""
    start = content[:200].lstrip().lower()
    if not content:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; `git lfs pull` fetches the picture itself"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page"
    if b"ftyphei" in start or b"ftypmif1" in start:
        return "it is a HEIC file, which only the package pillow-heif reads; `pip install pillow-heif` installs it"
    return f"its {len(content):,} bytes are none of {', '.join(FORMATS)}"


def swaps_sides(picture: Image.Image) -> bool:
    """Return whether width and height change places when the picture is turned upright."""
    return picture.getexif().get(ORIENTATION) in {5, 6, 7, 8}


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Return width and height of the upright picture."""
    return picture.size[::-1] if swaps_sides(picture) else picture.size


def is_grey(picture: Image.Image) -> bool:
    """Return whether a picture's mode, or its palette, has no colours."""
    if picture.mode == "P" and picture.palette:
        colors = np.frombuffer(picture.palette.tobytes(), np.uint8)
        planes = len(picture.palette.mode)
        return picture.palette.mode == "RGB" and bool((np.ptp(colors.reshape(-1, planes), axis=1) == 0).all())
    return picture.mode in GREY_MODES or picture.mode.startswith("I;")


def to_pixels(picture: ImageFile.ImageFile, color: Color) -> Image.Image:
    """Return an opened picture, upright, in the wanted colour model; see `decode` for transparent parts."""
    wanted = "L" if color == "grey" else "RGB"
    inverted = picture.format == "JPEG" and picture.mode == "CMYK" and "adobe" not in picture.info
    check_depth(picture)
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith(("I", "F")):  # Pillow would clip more than 8 bits per pixel.
        levels_HW = np.asarray(picture)
        pixels = Image.fromarray(to_8_bits(levels_HW))
        if "transparency" not in picture.info:
            return pixels.convert(wanted)
        alpha = Image.fromarray((levels_HW != picture.info["transparency"]) * np.uint8(255))
        return on_paper(pixels.convert(wanted), alpha)
    if picture.has_transparency_data:
        with_alpha = picture.convert("RGBA")
        return on_paper(with_alpha.convert(wanted), with_alpha.getchannel("A"))
    if inverted:  # Pillow takes all of these for Adobe's kind, in which 255 is no ink.
        return ImageChops.invert(picture).convert("RGB").convert(wanted)
    return picture.convert(wanted)


def on_paper(pixels: Image.Image, alpha: Image.Image) -> Image.Image:
    """Return a picture with transparent parts on white or black paper, whichever shows it; see `decode`."""
    white, black = (
        Image.composite(pixels, Image.new(pixels.mode, pixels.size, paper), alpha) for paper in ("white", "black")
    )
    opacity = np.asarray(alpha).mean()
    light_ink = opacity < 128 and np.asarray(black.convert("L")).mean() > opacity / 2
    return black if light_ink or np.ptp(np.asarray(white.convert("L"))) < MIN_CONTRAST else white


def check_depth(picture: ImageFile.ImageFile) -> None:
    """Raise `ValueError` for a colour picture of 16 bits per channel of which the upper bits are not used.

    Pillow reads the upper 8 bits only, so of 10 or 12 bits in use nearly nothing would be left.
    """
    deep = any(";16" in str(tile.args) for tile in picture.tile)
    if deep and picture.mode in {"RGB", "RGBA", "LA"}:
        extrema = picture.convert("RGB").getextrema()
        if 0 < max(high for _, high in extrema) < 16:  # type: ignore[misc]
            raise ValueError("it uses at most 12 of its 16 bits per channel; save it with 8 bits per channel")


def to_8_bits(levels_HW: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the upper 8 of the bits that are used; their number is the smallest of `DEPTHS` that holds the levels.

    A scanner's 10 or 12 bits in a 16-bit file become as bright as its 8 bits would be, and 16 bits lose the lower 8.
    A few hot pixels do not count: they become white.
    """
    if levels_HW.dtype.kind == "f" or levels_HW.min() < 0:
        raise ValueError("its pixels must be whole numbers from 0, but some are fractions or negative")
    highest = int(np.partition(levels_HW.ravel(), position := hot_position(levels_HW.size))[position])
    depth = next(depth for depth in DEPTHS if highest < 1 << depth)
    return np.minimum(levels_HW >> (depth - 8), 255).astype(np.uint8)


def hot_position(pixels: int) -> int:
    """Return the position, among sorted levels, of the highest one that is not from a hot pixel: one in 10,000 is."""
    return pixels - 1 - math.floor(pixels / 10_000)
