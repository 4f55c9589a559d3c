"""Handle images: turn pictures into inputs of a model, and describe, compare and draw inputs.

Shape suffixes: N images, C planes, H x W pixels.
"""

import base64
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

from stages.core.examples import ink, likeness, picture
from stages.core.examples.config import Pictures
from stages.core.examples.spec import Opening, Spec
from stages.core.files.errors import UserError

if TYPE_CHECKING:  # The service uses this module, too, and starts sooner without these.
    import polars as pl


LARGEST_SIDE = 64  # pixels of an input whose size nobody states
BLANK = "is blank; there is nothing to classify"


def is_example(content: bytes, name: str) -> bool:
    """Return whether a file is meant as a picture: its content says so, or at least its name."""
    suffixes = (*picture.SUFFIXES, *picture.FOREIGN_SUFFIXES)
    return bool(picture.SIGNATURES.match(content)) or name.lower().endswith(suffixes)


def inspect(content: bytes, name: str) -> dict[str, int | str | bool]:
    """Return what the header of a picture says, by the name of a column; raise `UserError` if it has none."""
    return picture.read_header(content, name)._asdict()


def decoder_version() -> str:
    """Return the versions of what decodes pictures: another one may give other pixels."""
    codecs = ("libjpeg_turbo", "jpg", "webp", "libtiff", "zlib")
    return ", ".join([f"pillow {PIL.__version__}", *(f"{name} {features.version(name)}" for name in codecs)])


def choose_shape(files: "pl.DataFrame", settings: Pictures) -> tuple[tuple[int, int, int], Opening]:
    """Return the shape [C, H, W] of the inputs that these picture files become, and how they become that.

    `files` has the columns of `inspect`, null where a file is not a picture.
    """
    known = files.drop_nulls("width")
    color = settings.color
    if color == "auto":
        color = "grey" if settings.centre_ink or known["grey"].all() else "rgb"
    if settings.size != "auto":
        height, width = settings.size if isinstance(settings.size, list) else (settings.size, settings.size)
    else:
        height, width = usual_size(known["height"].to_numpy(), known["width"].to_numpy())
    return (1 if color == "grey" else 3, height, width), opening(color, settings)


def usual_size(heights_N: NDArray[np.generic], widths_N: NDArray[np.generic]) -> tuple[int, int]:
    """Return the height and width of the pictures if all have the same, small ones, else those of a square."""
    height, width = int(heights_N[0]), int(widths_N[0])
    if max(height, width) <= LARGEST_SIDE and (heights_N == height).all() and (widths_N == width).all():
        return height, width
    side = min(LARGEST_SIDE, int(np.median(np.minimum(heights_N, widths_N))))
    return side, side


def opening_of_arrays(shape: tuple[int, ...], settings: Pictures, name: str) -> Opening:
    """Return how pictures become inputs of this shape [C, H, W], which was delivered as an array with this name.

    Raises `UserError` if the settings ask for another size or other planes: arrays are taken as they are.
    """
    planes, height, width = shape
    color = {1: "grey", 3: "rgb"}.get(planes)
    if color is None:
        raise UserError(f"{name} has images of {planes} planes, expected 1 (grey levels) or 3 (red, green and blue)")
    sizes = ["auto", [height, width], *([height] if height == width else [])]
    for field, found, allowed in (("size", settings.size, sizes), ("color", settings.color, ["auto", color])):
        if found not in allowed:
            raise UserError(
                f"{name} has images of {height}x{width} pixels, {color}: {field} must be auto, found {found}"
            )
    return opening(color, settings)


def opening(color: str, settings: Pictures) -> Opening:
    """Return the settings that travel with the model; raise `UserError` if they contradict each other."""
    if settings.centre_ink and color != "grey":
        raise UserError("centre_ink needs grey inputs, but the pictures have colours; state color: grey")
    return Opening(
        color=color,  # type: ignore[arg-type]
        resize=settings.resize,
        centre_ink=settings.centre_ink,
        max_pixels=settings.max_pixels,
    )


def open_picture(content: bytes, name: str, shape: tuple[int, int, int], how: Opening) -> NDArray[np.uint8]:
    """Return the input [C, H, W] that a picture file becomes, the same one in training and in use.

    Raises `UserError` with the file's name if it cannot be read, is too large or is blank.
    """
    _, height, width = shape

    def needed(*size: int) -> tuple[int, int]:
        """Return the width and height at which a picture of this size has as many pixels as its input keeps."""
        scales = width / size[0], height / size[1]
        scale = min(scales) if how.resize == "fit" else max(scales)
        return math.ceil(size[0] * scale), math.ceil(size[1] * scale)

    # Thin strokes must not be averaged away before the ink is found.
    pixels = picture.decode(content, name, how.color, how.max_pixels, None if how.centre_ink else needed)
    if how.centre_ink:
        (fitted,), (blank,) = ink.centre(np.asarray(pixels)[None], height, width)
    else:
        fitted, blank = fit_picture(pixels, height, width, how)
    if blank:
        raise UserError(f"{name} {BLANK}")
    return np.ascontiguousarray(np.atleast_3d(fitted).transpose(2, 0, 1))


def fit(
    images: NDArray[np.uint8], shape: tuple[int, int, int], how: Opening
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return inputs [N, C, H, W], made from images [N, H, W] or [N, H, W, 3], and which of them are blank.

    With `centre_ink`, images become white on black and are centred; see `ink.centre`. Otherwise, an image is blank if
    each of its planes has a single level, borders aside, and colours are never inverted, because the model was trained
    on them as they are.
    """
    planes, height, width = shape
    if images.ndim == 4 and planes == 1:
        grey = Image.fromarray(images.reshape(-1, *images.shape[2:])).convert("L")  # the luma that `decode` takes
        images = np.asarray(grey).reshape(images.shape[:3])
    if how.centre_ink:
        fitted_NHW, blank_N = ink.centre(images, height, width)
        return fitted_NHW[:, None], blank_N
    if images.shape[1:3] != (height, width):
        fitted, blanks = zip(
            *(fit_picture(Image.fromarray(image), height, width, how) for image in images), strict=True
        )
        images, blank_N = np.stack(fitted), np.array(blanks)
    else:
        blank_N = find_blank(images.reshape(len(images), 1, height, -1) if images.ndim == 3 else images.swapaxes(1, 3))
    if images.ndim == 3:
        images = np.repeat(images[..., None], planes, axis=3)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), blank_N


def fit_picture(image: Image.Image, height: int, width: int, how: Opening) -> tuple[NDArray[np.uint8], bool]:
    """Return an image as an array, within black borders where it is narrower, and whether it is blank."""
    resized = np.asarray(resize(image, height, width, how))
    # The borders come last, because a blank picture within them would not look blank.
    blank = bool((resized == resized[0, 0]).all())
    if resized.shape[:2] == (height, width):
        return resized, blank
    framed = np.zeros((height, width, *resized.shape[2:]), np.uint8)
    top, left = (height - resized.shape[0]) // 2, (width - resized.shape[1]) // 2
    framed[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
    return framed, blank


def resize(image: Image.Image, height: int, width: int, how: Opening) -> Image.Image:
    """Return an image in another size, which is smaller than `height` x `width` in one direction if it must `fit`."""
    box, size = (0.0, 0.0, float(image.width), float(image.height)), (width, height)
    scales = width / image.width, height / image.height
    match how.resize:
        case "fit":
            size = max(1, round(image.width * min(scales))), max(1, round(image.height * min(scales)))
        case "crop":
            # Rounding must not make the box a little larger than the image.
            across, down = min(width / max(scales), image.width), min(height / max(scales), image.height)
            left, top = (image.width - across) / 2, (image.height - down) / 2
            box = left, top, min(left + across, image.width), min(top + down, image.height)
    shrinks = size[0] <= box[2] - box[0] and size[1] <= box[3] - box[1]
    # The mean of an area, which no other filter surpassed on Fashion-MNIST; enlarged, it would leave squares.
    return image.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR, box)


def find_blank(inputs_NCHW: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return which images have a single level in each plane."""
    planes_NCP = inputs_NCHW.reshape(*inputs_NCHW.shape[:2], -1)
    return (planes_NCP.min(axis=2) == planes_NCP.max(axis=2)).all(axis=1)


def describe(inputs_NCHW: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    """Return what the table of examples records about inputs: brightness, contrast (0..255) and likeness of each."""
    pixels_NP = inputs_NCHW.reshape(len(inputs_NCHW), -1)
    count = pixels_NP.shape[1]
    # Sums of whole numbers are exact, so the deviation of a constant image is exactly 0.
    sum_N = pixels_NP.sum(1, dtype=np.int64)
    square_N = np.einsum("np,np->n", pixels_NP, pixels_NP, dtype=np.int64, casting="unsafe")
    return {
        "brightness": (sum_N / count).astype(np.float32),
        "contrast": (np.sqrt(count * square_N - sum_N**2) / count).astype(np.float32),
        "likeness": likeness.hash_pictures(inputs_NCHW),
    }


def scale_of(inputs_NCHW: NDArray[np.generic]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum and the sum of squares of each plane of x / 255, float64 [C]."""
    planes_CP = inputs_NCHW.swapaxes(0, 1).reshape(inputs_NCHW.shape[1], -1)
    counts_CL = np.stack([np.bincount(plane_P, minlength=256) for plane_P in planes_CP])  # of each level
    levels_L = np.arange(256) / 255
    return counts_CL @ levels_L, counts_CL @ levels_L**2


def summarize(examples: "pl.DataFrame") -> dict[str, float]:
    """Return the mean and deviation of all pixels (0..255) of these images, and the means of the extreme images."""
    mean_N, std_N = (examples[name].to_numpy().astype(np.float64) for name in ("brightness", "contrast"))
    # All images have the same size, so the mean of their squares is that of all pixels.
    deviation = math.sqrt((std_N**2 + mean_N**2).mean() - mean_N.mean() ** 2)
    return {
        "mean": float(mean_N.mean()),
        "deviation": deviation,
        "darkest": float(mean_N.min()),
        "brightest": float(mean_N.max()),
    }


UNNATURAL = {"all_0": "a black image", "all_255": "a white image", "noise": "images of random pixels"}


def adversarial(spec: Spec, count: int, seed: int) -> dict[str, NDArray[np.uint8]]:
    """Return unnatural inputs [N, C, H, W] by their names in `UNNATURAL`; `count` of them are of random pixels."""
    noise_NCHW = np.random.default_rng(seed).integers(256, size=(count, *spec.shape), dtype=np.uint8)
    return {
        "all_0": np.zeros((1, *spec.shape), np.uint8),
        "all_255": np.full((1, *spec.shape), 255, np.uint8),
        "noise": noise_NCHW,
    }


def draw(images_NCHW: NDArray[np.generic]) -> str:
    """Return a data URL of a PNG with these images side by side."""
    row_HWC = np.concatenate([*images_NCHW.transpose(0, 2, 3, 1)], axis=1)
    file = io.BytesIO()
    Image.fromarray(row_HWC.squeeze(axis=2) if row_HWC.shape[2] == 1 else row_HWC).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def check_array(shape: tuple[int, ...], dtype: np.dtype[Any], name: str, max_pixels: int) -> tuple[int, ...]:
    """Return the shape, [N, H, W] or [N, H, W, 3], of the images in an array of this shape; a single image is N = 1.

    Raise `UserError` with the array's name if it holds something else.
    """
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 3):
        shape = (1, *shape)
    pixels = math.prod(shape[1:3])
    fits = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if dtype != np.uint8 or not fits or not 0 < pixels <= max_pixels:
        raise UserError(
            f"{name} holds {dtype} {[*shape]}; expected uint8 [H, W], [N, H, W], [H, W, 3] or [N, H, W, 3] with at"
            f" most {max_pixels:,} pixels per image"
        )
    return shape
