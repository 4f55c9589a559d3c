"""Open picture files: recognize them, read their headers, and decode them to pixels of one colour model.

The pipeline, the service and the predictions for folders all open pictures here, so a model sees the same pixels
everywhere. Shape suffixes: H x W pixels.
"""

import io
import math
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile, PngImagePlugin, UnidentifiedImageError

from stages.core.examples.ink import MIN_CONTRAST
from stages.core.examples.spec import Color
from stages.core.files.errors import UserError

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]
SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
SIGNATURES = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF.{4}WEBP|GIF8[79]a|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|"
    rb".{4}ftyp(hei[cmsx]|mif1|avif)",
    re.DOTALL,
)
# These formats are not read, so that files of these names become problems instead of being overlooked.
FOREIGN_SUFFIXES = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".psd", ".svg", ".ppm", ".pgm", ".tga", ".ico", ".dng")
with suppress(ImportError):  # It is an optional package.
    from pillow_heif import register_heif_opener  # type: ignore[import-not-found]

    register_heif_opener()
    FORMATS.append("HEIF")
    SUFFIXES += [".heic", ".heif"]

# What often has the name of a picture, by the beginning of its content in lower case.
FOREIGN = {
    rb"version https://git-lfs": "it is a pointer of Git LFS; `git lfs pull` fetches the picture itself",
    rb"<!doctype html|<html": "it is an HTML page",
    rb"(?s).{4}ftypavif": "it is an AVIF file; save it as PNG, JPEG or WebP",
}

ORIENTATION = 0x0112  # EXIF's tag
# What turns a picture upright, by the value of the tag.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PHOTOMETRIC, WHITE_IS_ZERO = 0x0106, 0  # a tag of TIFF, and its value for inverted grey levels
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
        width, height = upright_size(picture, orientation(picture, content))
        return Header(width, height, picture.mode, is_grey(picture))


def decode(
    content: bytes, name: str, color: Color, max_pixels: int, needed: Callable[[int, int], tuple[int, int]] | None
) -> Image.Image:
    """Return the pixels of a picture file, upright, as mode "L" (luma of ITU-R BT.601) or "RGB".

    Of an animation or of several pages, only the first is decoded. Transparent parts are shown on white, but on black
    if less than half of the picture is opaque and that part is light, or if nothing would be visible on white.

    `needed` takes the width and the height of the picture and returns those that its user needs. A JPEG file is then
    decoded at 1/2, 1/4 or 1/8 of its size, as long as that is twice as large as needed. Without `needed`, it is decoded
    at its full size. Raises `UserError` with the file's name if the content is in none of the `FORMATS`, is damaged, or
    has more than `max_pixels`, which its header says before anything is decoded.
    """
    with opened(content, name) as picture:
        if picture.width * picture.height > max_pixels:
            size = f"{picture.width:,} x {picture.height:,} pixels"
            raise UserError(f"{name} has {size}, more than the limit of {max_pixels:,}")
        turn = orientation(picture, content)
        if needed:
            width, height = needed(*upright_size(picture, turn))
            width, height = (height, width) if swaps_sides(turn) else (width, height)
            picture.draft("L" if color == "grey" else "RGB", (2 * width, 2 * height))
        with ONE_AT_A_TIME if picture.width * picture.height > LARGE else nullcontext():
            pixels = to_pixels(picture, color)
            return pixels.transpose(TURNS[turn]) if turn in TURNS else pixels


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
        raise UserError(f"{name} cannot be read: {error or type(error).__name__}") from error


def what_it_is(content: bytes) -> str:
    """Describe content that is in no format of pictures."""
    start = content[:200].lstrip().lower()
    if not content:
        return "it is empty"
    for signature, name in FOREIGN.items():
        if re.match(signature, start):
            return name
    if re.match(rb".{4}ftyp(hei|mif1)", start, re.DOTALL):
        missing = "it is a HEIC file, which only the package pillow-heif reads; `pip install pillow-heif` installs it"
        return "it is a damaged HEIC file" if "HEIF" in FORMATS else missing
    return f"its {len(content):,} bytes are none of {', '.join(FORMATS)}"


def orientation(picture: ImageFile.ImageFile, content: bytes) -> int:
    """Return the value of EXIF's orientation tag, 1 if there is none or if it is damaged; nothing is decoded.

    Pillow's decoders of TIFF and HEIC turn the picture themselves.
    """
    if picture.format in {"TIFF", "HEIF"}:
        return 1
    if picture.format == "PNG" and "exif" not in picture.info and (exif := find_png_exif(content)):
        picture.info["exif"] = exif
    try:
        # For a PNG file, Pillow's own method would decode the whole picture to search for the tag behind it.
        return int(Image.Image.getexif(picture).get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001  # Viewers ignore damaged EXIF data, too.
        return 1


def find_png_exif(content: bytes) -> bytes | None:
    """Return the EXIF data of a PNG file, which may stand behind the pixels."""
    position = 8
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"eXIf":
            return content[position + 8 : position + 8 + length]
        position += length + 12
    return None


def swaps_sides(turn: int) -> bool:
    """Return whether width and height change places when a picture of this orientation is turned upright."""
    return 5 <= turn <= 8


def upright_size(picture: Image.Image, turn: int) -> tuple[int, int]:
    """Return the width and height of the picture after it has been turned upright."""
    return picture.size[::-1] if swaps_sides(turn) else picture.size


def is_grey(picture: Image.Image) -> bool:
    """Return whether a picture's mode, or its palette, has no colours."""
    if picture.mode == "P" and picture.palette:
        palette = picture.palette
        planes = len(palette.rawmode or palette.mode)  # such as BGRX, and RGB;L, of which the planes lie apart
        if palette.mode != "RGB":
            return False
        colors = np.frombuffer(bytes(palette.palette), np.uint8)
        if (palette.rawmode or "").endswith(";L"):
            colors_NC = colors.reshape(3, -1).T
        else:
            colors_NC = colors[: len(colors) // planes * planes].reshape(-1, planes)[:, :3]
        return bool((np.ptp(colors_NC, axis=1) == 0).all())
    return picture.mode in GREY_MODES or picture.mode.startswith("I;")


def to_pixels(picture: ImageFile.ImageFile, color: Color) -> Image.Image:
    """Return an opened picture, not yet turned upright, in the wanted colour model; see `decode`."""
    wanted = "L" if color == "grey" else "RGB"
    inverted = picture.format in {"JPEG", "MPO"} and picture.mode == "CMYK" and "adobe" not in picture.info
    scale_transparent_level(picture)  # before the pixels are decoded, which discards their format
    check_depth(picture)
    if picture.mode.startswith(("I", "F")):  # Pillow would clip more than 8 bits per pixel.
        white_is_zero = picture.format == "TIFF" and cast(Any, picture).tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
        levels_HW = np.asarray(picture)
        grey_HW = to_8_bits(levels_HW)
        pixels = Image.fromarray(255 - grey_HW if white_is_zero else grey_HW)
        if "transparency" not in picture.info:
            return pixels.convert(wanted)
        alpha = Image.fromarray((levels_HW != picture.info["transparency"]) * np.uint8(255))
        return on_paper(pixels.convert(wanted), alpha)
    if picture.has_transparency_data:
        with_alpha = picture.convert("RGBA")
        return on_paper(with_alpha.convert(wanted), with_alpha.getchannel("A"))
    if inverted:  # Pillow takes every CMYK file for one of Adobe's kind, in which 255 is no ink.
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
        levels_P = np.asarray(picture.convert("RGB")).ravel()
        if np.partition(levels_P, position := hot_position(levels_P.size))[position] < 16 and levels_P.any():
            raise ValueError("it uses at most 12 of its 16 bits per channel; save it with 8 bits per channel")


def scale_transparent_level(picture: ImageFile.ImageFile) -> None:
    """Scale the level or colour that a PNG file declares transparent as Pillow scales the pixels, which it forgets."""
    level = picture.info.get("transparency")
    if picture.format != "PNG" or not picture.tile:
        return
    raw = str(picture.tile[0].args)
    if picture.mode == "RGB" and raw.startswith("RGB;16") and isinstance(level, tuple):
        picture.info["transparency"] = tuple(part >> 8 for part in level)
    elif picture.mode == "L" and isinstance(level, int) and (bits := {"L;2": 2, "L;4": 4}.get(raw)):
        picture.info["transparency"] = level * 255 // ((1 << bits) - 1)


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
