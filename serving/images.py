"""Pictures as people have them, made into what the model was trained on. NumPy and Pillow are all it takes.

Shape suffixes: N images, H x W pixels.
"""

import io
import math
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.core.errors import UserError

MAX_PIXELS = 50_000_000  # of one picture, as the largest cameras of telephones take them
FORMATS = ("PNG", "JPEG")
MIN_CONTRAST = 16  # grey levels between background and ink; less is noise on a blank picture
BOX_SHARE = 20 / 28  # of an image's side that the ink may take, as in MNIST

# Pillow only warns of pictures somewhat larger than its limit
warnings.simplefilter("error", Image.DecompressionBombWarning)


def decode(content: bytes, source: str) -> NDArray[np.uint8]:
    """The grey levels [H, W] of a PNG or JPEG file (luma of ITU-R BT.601), upright, what is transparent on white.

    Of an animation the first picture. `UserError` names `source` where this is no such file, is damaged or has more
    than `MAX_PIXELS`, which its header tells before anything is decoded.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                size = f"{picture.width:,} x {picture.height:,} pixels"
                raise UserError(f"{source} has {size}, allowed are {MAX_PIXELS:,} in all")
            ImageOps.exif_transpose(picture, in_place=True)
            return to_grey(picture)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{source} has more than the {MAX_PIXELS:,} pixels that are allowed") from None
    except UnidentifiedImageError:
        what = f"its {len(content):,} bytes are neither PNG nor JPEG" if content else "it is empty"
        raise UserError(f"{source} is no picture: {what}") from None
    except Exception as error:  # Pillow's decoders raise what they come upon
        raise UserError(f"{source} is damaged: {error}") from error


def to_grey(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to 8
        grey_HW = np.asarray(picture) >> 8
        if "transparency" in picture.info:
            grey_HW[np.asarray(picture) == picture.info["transparency"]] = 255
        return grey_HW.astype(np.uint8)
    if picture.has_transparency_data:
        opaque = Image.new("RGBA", picture.size, "white")
        opaque.alpha_composite(picture.convert("RGBA"))
        picture = opaque
    return np.array(picture.convert("L"))


def white_on_black(images_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each image inverted where its background is light; one of a single grey level is blank: all 0.

    The background is light where most of the pixels along the border are nearer to the lightest pixel than to the
    darkest.
    """
    darkest_N, lightest_N = images_NHW.min(axis=(1, 2)), images_NHW.max(axis=(1, 2))
    middle_N = darkest_N // 2 + lightest_N // 2
    light_N = (border(images_NHW) > middle_N[:, None]).mean(axis=1) > 0.5
    dark_NHW = np.where(light_N[:, None, None], 255 - images_NHW, images_NHW)
    dark_NHW[darkest_N == lightest_N] = 0
    return dark_NHW


def fit(grey_HW: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """An image [height, width] for the model, white on black.

    A picture of that size stays as it is but for the inversion. Any other one is normalized as MNIST's were (LeCun et
    al., "Gradient-based learning applied to document recognition", 1998, III.A): the ink's bounding box is scaled,
    anti-aliased and in its proportions, to 20x20 of 28x28 pixels and placed with its centre of mass in the centre;
    then its contrast is stretched to 0..255. A blank picture gives an image that is all 0.
    """
    (dark_HW,) = white_on_black(grey_HW[None])
    if dark_HW.shape == (height, width):
        return dark_HW
    background = int(np.median(border(dark_HW[None])))
    contrast = int(dark_HW.max()) - background
    if contrast < MIN_CONTRAST:
        return np.zeros((height, width), np.uint8)
    # shadows and noise stay below: of 1/8, 1/4 and 3/8 the best on validation images made to look like photographs
    paper = np.uint8(background + contrast // 8)
    ink_HW = np.maximum(dark_HW, paper) - paper
    inside_HW = ink_HW > ink_HW.max() // 2
    rows, columns = np.flatnonzero(inside_HW.any(axis=1)), np.flatnonzero(inside_HW.any(axis=0))
    box_HW = ink_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX_SHARE * min(height / len(box_HW), width / len(box_HW[0]))
    size_HW = [max(1, round(scale * side)) for side in box_HW.shape]
    # not in whole grey levels: of thin strokes in a large picture nothing would be left
    scaled_HW = np.array(Image.fromarray(box_HW.astype(np.float32)).resize(size_HW[::-1], Image.Resampling.BOX))
    scaled_HW *= 255 / scaled_HW.max()
    top, left = (
        # as in MNIST: by whole pixels, which puts the centre of mass into the pixel right and below of the middle
        min(max(0, math.floor(side / 2 + 1 - centre)), side - box)
        for side, box, centre in zip((height, width), size_HW, centre_of_mass(scaled_HW), strict=True)
    )
    image_HW = np.zeros((height, width), np.uint8)
    image_HW[top : top + size_HW[0], left : left + size_HW[1]] = scaled_HW.round()
    return image_HW


def border(images_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels along the four sides, [N, 2H + 2W - 4]."""
    sides = (images_NHW[:, 0], images_NHW[:, -1], images_NHW[:, 1:-1, 0], images_NHW[:, 1:-1, -1])
    return np.concatenate(sides, axis=1)


def centre_of_mass(image_HW: NDArray[np.float32]) -> tuple[float, float]:
    """Its y and x in pixels from the upper left corner; a pixel's mass lies in its middle."""
    by_row, by_column = image_HW.sum(axis=1), image_HW.sum(axis=0)
    y, x = (mass @ (np.arange(len(mass)) + 0.5) / mass.sum() for mass in (by_row, by_column))
    return float(y), float(x)
