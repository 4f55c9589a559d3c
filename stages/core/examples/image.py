"""Handle images: specify and describe them, and convert pictures of any kind into inputs of a model.

Shape suffixes: N images, C planes, H x W pixels.
"""

import base64
import io
import math
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from stages.core.examples.spec import Spec
from stages.core.files.errors import UserError

if TYPE_CHECKING:  # The service uses this module, too, and starts sooner without polars.
    import polars as pl

MAX_PIXELS = 50_000_000  # of one picture, about as many as large phone cameras take
MAX_BYTES = 8 * MAX_PIXELS  # of a picture's file: PNG, the largest format, has at most 8 bytes per pixel
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SIGNATURES = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF.{4}WEBP|GIF8[79]a|BM.{4}\0{4}|II[*+]\0|MM\0[*+]", re.DOTALL
)
DEPTHS = (8, 10, 12, 14, 16, 32)  # bits per pixel that cameras and scanners use
MIN_CONTRAST = 16  # grey levels between background and ink; less is noise on a blank picture
FILTER = Image.Resampling.BOX  # The mean of an area. On resized Fashion-MNIST, no other was significantly better.
BOX_SHARE = 20 / 28  # of an image's side that the ink may take, as in MNIST
BLANK = "is blank; there is nothing to classify"

# Pillow only warns about pictures that are somewhat larger than its limit.
warnings.simplefilter("error", Image.DecompressionBombWarning)
# Colour profiles and texts of a megabyte are common, so each may be as large as Pillow allows for all together.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


def specify(shape: tuple[int, ...], classes: list[str], mean: float, std: float, *, centre_ink: bool) -> Spec:
    """Return the spec of uint8 images of this shape (C, H, W)."""
    planes, height, width = shape
    return Spec(
        kind="image",
        shape=(planes, height, width),
        dtype="uint8",
        classes=classes,
        mean=mean,
        std=std,
        centre_ink=centre_ink,
    )


def describe(images_NCHW: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
    """Return the columns that the table of examples has for images: mean and deviation of each image's pixels."""
    pixels_NP = images_NCHW.reshape(len(images_NCHW), -1)
    # In float32, the deviation of a large constant image would not be exactly 0.
    mean_N, std_N = pixels_NP.mean(1, dtype=np.float64), pixels_NP.std(1, dtype=np.float64)
    return {"pixel_mean": mean_N.astype(np.float32), "pixel_std": std_N.astype(np.float32)}


def summarize(examples: "pl.DataFrame") -> dict[str, float]:
    """Return the mean and deviation of all pixels (0..255) of these images, and the extremes of the images' means."""
    mean_N, std_N = (examples[f"pixel_{name}"].to_numpy().astype(np.float64) for name in ("mean", "std"))
    # All images have the same size, so the mean of their squares is that of all pixels.
    deviation = math.sqrt((std_N**2 + mean_N**2).mean() - mean_N.mean() ** 2)
    return {
        "mean": float(mean_N.mean()),
        "deviation": deviation,
        "darkest": float(mean_N.min()),
        "brightest": float(mean_N.max()),
    }


def adversarial(spec: Spec, count: int, seed: int) -> dict[str, NDArray[np.uint8]]:
    """Return unnatural inputs [N, C, H, W] by name: black, white, and `count` images of random pixels."""
    noise_NCHW = np.random.default_rng(seed).integers(256, size=(count, *spec.shape), dtype=np.uint8)
    return {
        "all_0": np.zeros((1, *spec.shape), np.uint8),
        "all_255": np.full((1, *spec.shape), 255, np.uint8),
        "noise": noise_NCHW,
    }


def draw(images_NCHW: NDArray[np.generic]) -> str:
    """Return a data URL of a PNG with these images side by side."""
    picture_HW = np.concatenate([*images_NCHW[:, 0]], axis=1)
    file = io.BytesIO()
    Image.fromarray(picture_HW).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def check_readable(spec: Spec, name: Path) -> None:
    """Raise `UserError` with the model's name unless pictures, read as grey levels, can become its inputs."""
    planes = spec.shape[0]
    if planes != 1:
        raise UserError(f"{name} does not work: its images must have 1 plane, grey levels, found {planes}")


def check_array(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> tuple[int, ...]:
    """Return the shape, [N, H, W] or [N, H, W, 3], of the images in an array of this shape; a single image is N = 1.

    Raise `UserError` with the array's name if it holds something else.
    """
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 3):
        shape = (1, *shape)
    pixels = math.prod(shape[1:3])
    fits = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if dtype != np.uint8 or not fits or not 0 < pixels <= MAX_PIXELS:
        raise UserError(
            f"{name} holds {dtype} {[*shape]}; expected uint8 [H, W], [N, H, W], [H, W, 3] or [N, H, W, 3] with at"
            f" most {MAX_PIXELS:,} pixels per image"
        )
    return shape


def to_inputs(images: NDArray[np.uint8], spec: Spec) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return inputs [N, 1, H, W] for a model, made from images that `check_array` allows, and which are blank."""
    if images.ndim == 4:
        count, height, width, colors = images.shape
        grey = Image.fromarray(images.reshape(-1, width, colors)).convert("L")  # with the luma that `decode` uses
        images = np.asarray(grey).reshape(count, height, width)
    _, height, width = spec.shape
    images_NHW, blank_N = fit(images, height, width, centre_ink=spec.centre_ink)
    return images_NHW[:, None], blank_N


def to_input(grey_HW: NDArray[np.uint8], name: str, spec: Spec) -> NDArray[np.uint8]:
    """Return the input [1, H, W] for a model, made from one image; raise `UserError` with its name if it is blank."""
    (input_CHW,), (blank,) = to_inputs(grey_HW[None], spec)
    if blank:
        raise UserError(f"{name} {BLANK}")
    return input_CHW


def decode(content: bytes, source: str) -> NDArray[np.uint8]:
    """Return the grey levels [H, W] of a picture file (luma of ITU-R BT.601), upright.

    Of an animation, only the first frame is decoded. Transparent parts are shown on white, but on black if less than
    half of the picture is opaque and that part is light, or if nothing would be visible on white. Raises a `UserError`
    that names `source` if the content is in none of the `FORMATS`, is damaged or has more than `MAX_PIXELS`,
    which is read from its header before anything is decoded.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                size = f"{picture.width:,} x {picture.height:,} pixels"
                raise UserError(f"{source} has {size}, allowed: at most {MAX_PIXELS:,} in all")
            ImageOps.exif_transpose(picture, in_place=True)
            return to_grey(picture)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{source} has more than the {MAX_PIXELS:,} pixels that are allowed") from None
    except UnidentifiedImageError:
        what = f"its {len(content):,} bytes are none of {', '.join(FORMATS)}" if content else "it is empty"
        raise UserError(f"{source} is not a picture: {what}") from None
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions.
        raise UserError(f"{source} cannot be read: {error}") from error


def to_grey(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the grey levels [H, W] of an opened picture; see `decode` for transparent parts."""
    alpha = None
    if picture.mode.startswith(("I", "F")):  # Pillow would clip more than 8 bits per pixel.
        levels_HW = np.asarray(picture)
        grey = Image.fromarray(to_8_bits(levels_HW))
        if "transparency" in picture.info:
            alpha = Image.fromarray((levels_HW != picture.info["transparency"]) * np.uint8(255))
    else:
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            alpha = picture.getchannel("A")
        grey = picture.convert("L")
    if alpha is None:
        return np.array(grey)
    on_white, on_black = (
        np.array(Image.composite(grey, Image.new("L", grey.size, paper), alpha)) for paper in ("white", "black")
    )
    opacity = np.asarray(alpha).mean()
    light_ink = opacity < 128 and on_black.mean() > opacity / 2
    return on_black if light_ink or np.ptp(on_white) < MIN_CONTRAST else on_white


def to_8_bits(levels_HW: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the upper 8 of the bits in use, whose number is the smallest of `DEPTHS` that holds every level.

    A scanner's 10 or 12 bits in a 16-bit file become as bright as its 8 bits would be, and 16 bits lose the lower 8.
    """
    if levels_HW.dtype.kind == "f" or levels_HW.min() < 0:
        raise ValueError("its pixels must be whole numbers from 0, found fractions or negative ones")
    depth = next(depth for depth in DEPTHS if int(levels_HW.max()) < 1 << depth)
    return (levels_HW >> (depth - 8)).astype(np.uint8)


def fit(
    images_NHW: NDArray[np.uint8], height: int, width: int, *, centre_ink: bool
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return images [N, height, width] for the model, and a mask of the blank ones.

    With `centre_ink`, all images become white on black. Images of another size are normalized as MNIST's were (LeCun
    et al., "Gradient-based learning applied to document recognition", 1998, III.A): the ink's bounding box is scaled to
    20x20 of 28x28 pixels, with anti-aliasing and without distortion, and placed with its centre of mass in the centre;
    then the contrast is stretched to 0..255. An image with less contrast than noise is blank.

    Without `centre_ink`, images of another size are resized as a whole, and grey levels are not inverted, because the
    model was trained on pixels as they are. An image of a single grey level is blank.
    """
    same_size = images_NHW.shape[1:] == (height, width)
    if not centre_ink:
        if not same_size:
            pictures = map(Image.fromarray, images_NHW)
            images_NHW = np.stack([np.asarray(picture.resize((width, height), FILTER)) for picture in pictures])
        return images_NHW, images_NHW.min(axis=(1, 2)) == images_NHW.max(axis=(1, 2))
    dark_NHW = white_on_black(images_NHW)
    background_N = np.median(border(dark_NHW), axis=1).astype(np.uint8)
    contrast_N = dark_NHW.max(axis=(1, 2)) - background_N
    blank_N = contrast_N < MIN_CONTRAST
    if same_size:
        return dark_NHW, blank_N
    fitted_NHW = np.zeros((len(images_NHW), height, width), np.uint8)
    for n in np.flatnonzero(~blank_N):
        # Shadows and noise stay below this level. Of 1/8, 1/4 and 3/8 of the contrast, 1/8 worked best on validation
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
