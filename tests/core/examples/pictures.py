"""Make picture files of every kind for the tests."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw


def encode(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:  # noqa: A002  # Pillow's name
    content = io.BytesIO()
    picture.save(content, format, **options)
    return content.getvalue()


def png(width: int, height: int, color_type: int, *chunks: tuple[bytes, bytes], depth: int = 8) -> bytes:
    """Return a PNG file with these chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )


def deep_png(levels_HWC: NDArray[np.integer[Any]], *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file of 16 bits per channel, which Pillow cannot write."""
    height, width, planes = levels_HWC.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels_HWC)
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[planes]
    return png(width, height, color_type, *chunks, (b"IDAT", zlib.compress(rows)), depth=16)


def draw_digit(width: int, height: int, ink: int, paper: int) -> NDArray[np.uint8]:
    """Return a large 7, drawn four times as large and reduced, so that its edges are smooth."""
    picture = Image.new("L", (4 * width, 4 * height), paper)
    across, down = 4 * width / 200, 4 * height / 300
    points = [(x * across, y * down) for x, y in ((50, 60), (150, 60), (90, 240))]
    ImageDraw.Draw(picture).line(points, ink, width=round(18 * across), joint="curve")
    return np.array(picture.resize((width, height), Image.Resampling.BOX))


def draw_colors(width: int, height: int) -> NDArray[np.uint8]:
    """Return a picture without symmetry: red grows to the right, green downwards, and a corner is blue."""
    colors = np.zeros((height, width, 3), np.uint8)
    colors[..., 0] = np.linspace(0, 255, width)
    colors[..., 1] = np.linspace(0, 255, height)[:, None]
    colors[: height // 3, : width // 3, 2] = 255
    return colors
