"""Normalize drawn characters by their ink, as MNIST's digits were.

LeCun et al., "Gradient-based learning applied to document recognition", 1998, III.A. Shape suffixes: N images, H x W
pixels.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MIN_CONTRAST = 16  # grey levels between background and ink; less is noise on a blank picture
BOX_SHARE = 20 / 28  # of an image's side that the ink may take, as in MNIST
FILTER = Image.Resampling.BOX  # The mean of an area.


def centre(images_NHW: NDArray[np.uint8], height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return images [N, height, width], white on black, and which of them are blank.

    Images of that size stay as they are but for their colours. In all others, the ink's bounding box is scaled to 20x20
    of 28x28 pixels, with anti-aliasing and without distortion, and placed with its centre of mass in the centre; then
    the contrast is stretched to 0..255. An image with less contrast than noise is blank.
    """
    dark_NHW = white_on_black(images_NHW)
    background_N = np.median(border(dark_NHW), axis=1).astype(np.uint8)
    contrast_N = dark_NHW.max(axis=(1, 2)) - background_N
    blank_N = contrast_N < MIN_CONTRAST
    if images_NHW.shape[1:] == (height, width):
        return dark_NHW, blank_N
    fitted_NHW = np.zeros((len(images_NHW), height, width), np.uint8)
    for n in np.flatnonzero(~blank_N):
        # Shadows and noise stay below this level. Of 1/8, 1/4 and 3/8 of the contrast, 1/8 was the best on validation
        # images that were made to look like photographs.
        paper = background_N[n] + contrast_N[n] // 8
        place_ink(np.maximum(dark_NHW[n], paper) - paper, fitted_NHW[n])
    return fitted_NHW, blank_N


def white_on_black(images_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return each image, inverted where its background is light.

    The background is light where most of the pixels along the border are nearer to the lightest pixel than to the
    darkest.
    """
    middle_N = images_NHW.min(axis=(1, 2)) // 2 + images_NHW.max(axis=(1, 2)) // 2
    light_N = (border(images_NHW) > middle_N[:, None]).mean(axis=1) > 0.5
    return np.where(light_N[:, None, None], 255 - images_NHW, images_NHW)


def place_ink(ink_HW: NDArray[np.uint8], image_HW: NDArray[np.uint8]) -> None:
    """Scale and centre white ink on black into `image_HW`, which is all 0."""
    height, width = image_HW.shape
    inside_HW = ink_HW > ink_HW.max() // 2
    rows, columns = np.flatnonzero(inside_HW.any(axis=1)), np.flatnonzero(inside_HW.any(axis=0))
    box_HW = ink_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX_SHARE * min(height / len(box_HW), width / len(box_HW[0]))
    size_HW = [max(1, round(scale * side)) for side in box_HW.shape]
    # Rounded to whole grey levels, thin strokes in a large picture would vanish.
    scaled_HW = np.array(Image.fromarray(box_HW.astype(np.float32)).resize(size_HW[::-1], FILTER))
    scaled_HW *= 255 / scaled_HW.max()
    top, left = (
        # As in MNIST, by whole pixels, so the centre of mass is in the pixel to the right of and below the middle.
        min(max(0, math.floor(side / 2 + 1 - centre)), side - box)
        for side, box, centre in zip((height, width), size_HW, centre_of_mass(scaled_HW), strict=True)
    )
    image_HW[top : top + size_HW[0], left : left + size_HW[1]] = scaled_HW.round()


def border(images_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the pixels along the four sides, [N, 2H + 2W - 4]."""
    sides = (images_NHW[:, 0], images_NHW[:, -1], images_NHW[:, 1:-1, 0], images_NHW[:, 1:-1, -1])
    return np.concatenate(sides, axis=1)


def centre_of_mass(image_HW: NDArray[np.float32]) -> tuple[float, float]:
    """Return the centre's y and x in pixels from the upper left corner; a pixel's mass lies in its middle."""
    by_row, by_column = image_HW.sum(axis=1), image_HW.sum(axis=0)
    y, x = (mass @ (np.arange(len(mass)) + 0.5) / mass.sum() for mass in (by_row, by_column))
    return float(y), float(x)
