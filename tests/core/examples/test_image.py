"""Test how a picture becomes the input of a model, and what is said and shown of inputs."""

import base64
import io
import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from ruamel.yaml import YAML

from stages.core.data.config import Normalize
from stages.core.examples import picture
from stages.core.examples.image import (
    adversarial,
    check_array,
    choose_shape,
    decoder_version,
    describe,
    draw,
    find_blank,
    fit,
    inspect,
    is_example,
    open_picture,
    opening_of_arrays,
    scale_of,
    summarize,
)
from stages.core.examples.spec import Opening, Resize, Spec
from stages.core.files.errors import UserError
from tests.conftest import PROJECT
from tests.core.examples.pictures import draw_colors, draw_digit, encode

COLORS = draw_colors(60, 40)
RESIZE: list[Resize] = ["fit", "crop", "stretch"]


def how(**settings_: Any) -> Opening:
    return Opening(**{"color": "grey", "resize": "fit", "centre_ink": False, "max_pixels": 10**8, **settings_})


def normalize(**settings_: Any) -> Normalize:
    defaults = YAML(typ="safe").load(PROJECT / "params.yaml")["normalize"]
    return Normalize.model_validate({**defaults, **settings_})


def fitted(image: NDArray[np.uint8], height: int, width: int, resize: Resize = "fit") -> NDArray[np.uint8]:
    """Return the only plane of the input that a grey image becomes, or [H, W, 3] of one in colour."""
    planes = 1 if image.ndim == 2 else 3
    (input_CHW,), (blank,) = fit(image[None], (planes, height, width), how(resize=resize))
    assert not blank
    return input_CHW[0] if planes == 1 else input_CHW.transpose(1, 2, 0)


def bars(height: int, width: int) -> NDArray[np.uint8]:
    """Return an image whose left half is dark and whose right half is light, but nowhere black."""
    image = np.full((height, width), 100, np.uint8)
    image[:, width // 2 :] = 200
    return image


def test_fitted_pictures_have_black_borders_of_equal_width() -> None:
    wide, high = fitted(bars(30, 60), 40, 40), fitted(bars(60, 30), 40, 40)
    for image in (wide, high.T):
        assert image[:10].max() == image[30:].max() == 0
        assert image[10:30].min() >= 100
    assert np.ptp(wide[10:30, :19]) == np.ptp(wide[10:30, 21:]) == 0


@pytest.mark.parametrize("side", [49, 98, 103, 107, 196])
def test_a_picture_is_cropped_although_its_scale_is_rounded(side: int) -> None:
    """The box to cut out must not begin at -1e-15."""
    image = np.arange(side * side, dtype=np.uint32).astype(np.uint8).reshape(side, side)
    assert fitted(image, 64, 64, "crop").shape == (64, 64)


def test_cropped_pictures_lose_both_ends_equally() -> None:
    image = np.zeros((20, 100), np.uint8)
    image[:] = np.arange(100)
    np.testing.assert_array_equal(fitted(image, 20, 20, "crop"), image[:, 40:60])
    np.testing.assert_array_equal(fitted(image.T.copy(), 20, 20, "crop"), image.T[40:60])
    assert fitted(image, 10, 10, "crop").min() == 41


def test_stretched_pictures_fill_the_input() -> None:
    found = fitted(bars(30, 60), 40, 20, "stretch")
    assert (found[:, :9] == 100).all()
    assert (found[:, 11:] == 200).all()


@pytest.mark.parametrize("resize", RESIZE)
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, 5000), (5000, 1), (27, 28), (64, 64), (333, 777)])
def test_every_size_becomes_the_size_of_the_input(size: tuple[int, int], resize: Resize) -> None:
    image = np.random.default_rng(1).integers(1, 256, (*size, 3), np.uint8)
    for planes, color in ((1, "grey"), (3, "rgb")):
        inputs, _ = fit(image[None], (planes, 30, 20), how(color=color, resize=resize))
        assert (inputs.shape, inputs.dtype) == ((1, planes, 30, 20), np.dtype(np.uint8))
        try:
            opened = open_picture(
                encode(Image.fromarray(image)), "a", (planes, 30, 20), how(color=color, resize=resize)
            )
            np.testing.assert_array_equal(opened[None], inputs)
        except UserError as error:
            assert str(error) == "a is blank; there is nothing to classify"  # noqa: PT017


def test_a_thin_line_keeps_a_pixel() -> None:
    line = np.tile(np.linspace(50, 250, 5000).astype(np.uint8), (1, 1))
    found = fitted(line, 28, 28)
    assert (found.max(axis=1) > 0).sum() == 1
    assert (found.max(axis=0) > 0).all()


def test_small_pictures_are_enlarged_without_squares() -> None:
    found = fitted(np.array([[0, 255]], np.uint8), 20, 40, "stretch").astype(int)
    assert (np.diff(found, axis=1) >= 0).all()
    assert len(np.unique(found)) > 10


@pytest.mark.parametrize("resize", RESIZE)
def test_pictures_of_the_models_size_stay_as_they_are(resize: Resize) -> None:
    np.testing.assert_array_equal(fitted(COLORS, 40, 60, resize), COLORS)


def test_a_grey_model_given_colors_takes_their_luma() -> None:
    inputs, _ = fit(COLORS[None], (1, 40, 60), how())
    np.testing.assert_array_equal(inputs[0, 0], np.asarray(Image.fromarray(COLORS).convert("L")))
    content = encode(Image.fromarray(COLORS))
    np.testing.assert_array_equal(open_picture(content, "a", (1, 40, 60), how()), inputs[0])


def test_a_color_model_given_grey_levels_repeats_them() -> None:
    grey = draw_digit(40, 60, 0, 255)
    inputs, _ = fit(grey[None], (3, 60, 40), how(color="rgb"))
    np.testing.assert_array_equal(inputs[0], [grey] * 3)
    np.testing.assert_array_equal(
        open_picture(encode(Image.fromarray(grey)), "a", (3, 60, 40), how(color="rgb")), inputs[0]
    )


@pytest.mark.parametrize("level", [0, 7, 200, 255])
@pytest.mark.parametrize("shape", [(28, 28), (1, 1), (1, 500), (300, 200)])
@pytest.mark.parametrize("centre_ink", [True, False])
@pytest.mark.parametrize("resize", RESIZE)
def test_a_single_level_is_blank(shape: tuple[int, int], level: int, centre_ink: bool, resize: Resize) -> None:
    image = np.full((1, *shape), level, np.uint8)
    assert fit(image, (1, 28, 28), how(centre_ink=centre_ink, resize=resize))[1].all()
    content = encode(Image.fromarray(image[0]))
    with pytest.raises(UserError, match=r"^a is blank; there is nothing to classify$"):
        open_picture(content, "a", (1, 28, 28), how(centre_ink=centre_ink, resize=resize))


@pytest.mark.parametrize("shape", [(28, 28), (30, 60)])
def test_a_single_color_is_blank(shape: tuple[int, int]) -> None:
    image = np.empty((1, *shape, 3), np.uint8)
    image[:] = (200, 100, 50)
    assert fit(image, (3, 28, 28), how(color="rgb"))[1].all()
    image[0, : shape[0] // 2, :, 2] = 150  # A single plane makes a difference.
    assert not fit(image, (3, 28, 28), how(color="rgb"))[1].any()


def test_what_is_lost_by_resizing_is_blank() -> None:
    speck = np.zeros((1, 6000, 6000), np.uint8)
    speck[0, 3000, 3000] = 255
    assert fit(speck, (1, 28, 28), how())[1].all()


def test_only_the_blank_images_of_several_are_blank() -> None:
    digit = draw_digit(100, 150, 0, 255)
    for centre_ink in (True, False):
        _, blank_N = fit(np.stack([digit, np.full_like(digit, 255), digit]), (1, 28, 28), how(centre_ink=centre_ink))
        assert blank_N.tolist() == [False, True, False]
    assert find_blank(np.stack([digit, np.full_like(digit, 9)])[:, None]).tolist() == [False, True]


def test_without_centre_ink_pixels_are_taken_as_they_are() -> None:
    """Dark on light, the pixels are neither moved nor inverted."""
    image = draw_digit(28, 28, 60, 200)
    image[:14] = 200
    np.testing.assert_array_equal(fitted(image, 28, 28), image)
    enlarged = image.repeat(10, axis=0).repeat(10, axis=1)
    np.testing.assert_array_equal(fitted(enlarged, 28, 28), image)


def test_with_centre_ink_it_is_white_on_black_and_centred() -> None:
    content = encode(Image.fromarray(draw_digit(400, 600, 0, 255)), "JPEG", quality=95)
    found = open_picture(content, "a", (1, 28, 28), how(centre_ink=True))[0]
    assert (found[0] == 0).all()
    assert found.max() == 255
    assert (found.max(axis=1) > 0).sum() == 20


def test_each_pixel_is_the_mean_of_the_area_that_it_stands_for() -> None:
    levels = np.random.default_rng(1).integers(256, size=(90, 40), dtype=np.uint8)
    means = levels.reshape(30, 3, 20, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(fitted(levels, 30, 20, "stretch"), means, atol=1)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from(RESIZE), st.booleans())
def test_any_picture_gives_an_image(height: int, width: int, seed: int, resize: Resize, centre_ink: bool) -> None:
    levels = np.random.default_rng(seed).integers(256, size=(2, height, width), dtype=np.uint8)
    images, _ = fit(levels, (1, 28, 20), how(resize=resize, centre_ink=centre_ink))
    assert (images.shape, images.dtype) == ((2, 1, 28, 20), np.dtype(np.uint8))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(picture.FORMATS), st.sampled_from(RESIZE), st.booleans(), st.data())
def test_any_bytes_give_an_input_or_a_user_error(
    format: str,  # noqa: A002
    resize: Resize,
    centre_ink: bool,
    data: st.DataObject,
) -> None:
    content = bytearray(encode(Image.fromarray(draw_digit(20, 30, 0, 255)).convert("RGB"), format))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    settings_ = how(resize=resize, centre_ink=centre_ink, max_pixels=100_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what it can do without
        try:
            found = open_picture(bytes(content), "a", (1, 28, 28), settings_)
            assert (found.shape, found.dtype) == ((1, 28, 28), np.dtype(np.uint8))
        except UserError as error:
            assert str(error).startswith("a ")  # noqa: PT017


@pytest.mark.parametrize("resize", RESIZE)
@pytest.mark.parametrize("size", [(800, 600), (600, 800), (2000, 200), (70, 3000)])
@pytest.mark.parametrize("value", [1, 6])
def test_a_large_jpeg_becomes_nearly_what_all_its_pixels_become(
    size: tuple[int, int], value: int, resize: Resize
) -> None:
    noise = np.random.default_rng(1).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    photo = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(6)).point(lambda level: (level - 100) * 4)
    exif = Image.Exif()
    exif[picture.ORIENTATION] = value
    content = encode(photo, "JPEG", quality=90, exif=exif)
    settings_ = how(color="rgb", resize=resize)
    found = open_picture(content, "a", (3, 32, 48), settings_).astype(int)
    whole = np.asarray(picture.decode(content, "a", "rgb", 10**8, None))
    (expected,), _ = fit(whole[None], (3, 32, 48), settings_)
    assert np.abs(found - expected).mean() < 3


def test_a_jpeg_and_its_turned_copy_become_the_same() -> None:
    photo = Image.fromarray(COLORS).resize((960, 640))
    exif = Image.Exif()
    exif[picture.ORIENTATION] = 6
    upright = open_picture(encode(photo, "JPEG", quality=95), "a", (3, 32, 32), how(color="rgb")).astype(int)
    turned = encode(photo.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)
    assert np.abs(open_picture(turned, "a", (3, 32, 32), how(color="rgb")) - upright).max() <= 4


def test_a_jpeg_of_60_megapixels() -> None:
    photo = Image.new("RGB", (10_000, 6000), (200, 100, 50))
    photo.paste((10, 20, 30), (0, 0, 5000, 6000))
    found = open_picture(encode(photo, "JPEG"), "a", (3, 64, 64), how(color="rgb"))
    np.testing.assert_allclose(found[:, 32, [5, 60]].T, [[10, 20, 30], [200, 100, 50]], atol=4)


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (encode(Image.fromarray(COLORS)), "a", True),
        (encode(Image.fromarray(COLORS), "JPEG"), "README.md", True),
        (b"<html>", "a.jpg", True),
        (b"", "a.PNG", True),
        (b"", "a.heic", True),
        (b"\0\0\0\x1cftypavif", "a", True),
        (b"# Flowers", "README.md", False),
        (b"", "LICENSE", False),
        (b"BMW is not a bitmap", "notes.txt", False),
    ],
)
def test_files_that_are_meant_as_pictures(content: bytes, name: str, expected: bool) -> None:
    assert is_example(content[:32], name) == expected


def test_the_header_becomes_columns() -> None:
    assert inspect(encode(Image.fromarray(COLORS)), "a") == {"width": 60, "height": 40, "mode": "RGB", "grey": False}
    assert decoder_version().startswith("pillow ")


def files(*sizes: tuple[int, int] | None, grey: bool = False) -> pl.DataFrame:
    rows = [(*size, grey) if size else (None, None, None) for size in sizes]
    return pl.DataFrame(rows, {"width": pl.Int64, "height": pl.Int64, "grey": pl.Boolean}, orient="row")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (files((20, 30), (20, 30), None), (3, 30, 20)),
        (files((20, 30), (20, 30), grey=True), (1, 30, 20)),
        (files((20, 30), (20, 31)), (3, 20, 20)),
        (files((500, 375), (640, 480), None), (3, 64, 64)),
        (files((64, 64), (64, 64)), (3, 64, 64)),
        (files((65, 64), (65, 64)), (3, 64, 64)),
        (files((5000, 1), (1, 5000)), (3, 1, 1)),
        (files((1, 1), (1, 1), grey=True), (1, 1, 1)),
    ],
)
def test_the_shape_follows_from_the_pictures(table: pl.DataFrame, expected: tuple[int, int, int]) -> None:
    assert choose_shape(table, normalize())[0] == expected


def test_the_settings_decide_about_the_shape() -> None:
    table = files((20, 30), (20, 30))
    assert choose_shape(table, normalize(size=48, color="grey"))[0] == (1, 48, 48)
    assert choose_shape(table, normalize(size=[24, 32], color="rgb"))[0] == (3, 24, 32)
    shape, opening = choose_shape(table, normalize(centre_ink=True, size=28, resize="crop", max_pixels=1000))
    assert shape == (1, 28, 28)
    assert opening == how(resize="crop", centre_ink=True, max_pixels=1000)


def test_arrays_are_taken_as_they_are() -> None:
    assert opening_of_arrays((1, 20, 30), normalize(), "a") == how()
    assert opening_of_arrays((3, 20, 30), normalize(size=[20, 30]), "a") == how(color="rgb")
    for settings_ in ({"size": 28}, {"size": [30, 20]}, {"color": "grey"}):
        with pytest.raises(UserError, match=r"^a has images of 20x30 pixels, rgb: (size|color) must be auto, found"):
            opening_of_arrays((3, 20, 30), normalize(**settings_), "a")
    with pytest.raises(UserError, match=r"^a has images of 2 planes, expected 1"):
        opening_of_arrays((2, 20, 30), normalize(), "a")
    with pytest.raises(UserError, match=r"^centre_ink needs grey inputs"):
        opening_of_arrays((3, 20, 30), normalize(centre_ink=True), "a")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 6), (1, 5, 6)), ((9, 5, 6), (9, 5, 6)), ((5, 6, 3), (1, 5, 6, 3)), ((9, 5, 6, 3), (9, 5, 6, 3))],
)
def test_arrays_of_images(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert check_array(shape, np.dtype(np.uint8), "a", 100) == expected


@pytest.mark.parametrize(
    ("shape", "dtype"), [((5,), "u1"), ((5, 6), "f4"), ((2, 5, 6, 4), "u1"), ((11, 10), "u1"), ((0, 5), "u1")]
)
def test_other_arrays_are_an_error(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(UserError, match=r"^a holds .*; expected uint8 \[H, W\]"):
        check_array(shape, np.dtype(dtype), "a", 100)


def make_images(count: int, planes: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(256, size=(count, planes, 6, 5), dtype=np.uint8)


SPEC = Spec(kind="image", shape=(1, 6, 5), dtype="uint8", classes=["a", "b"], mean=(0.1,), std=(0.3,), opening=how())


def test_the_scale_is_of_each_plane() -> None:
    images = make_images(50, 3)
    images[:, 1] //= 7
    sums_C, squares_C = scale_of(images)
    np.testing.assert_allclose(sums_C, (images / 255).sum((0, 2, 3)))
    np.testing.assert_allclose(squares_C, ((images / 255) ** 2).sum((0, 2, 3)))


def test_images_are_described_by_mean_and_deviation() -> None:
    images = make_images(50)
    described = describe(images)
    assert [*described] == ["brightness", "contrast", "likeness"]
    for name, expected in zip(described, (images.mean((1, 2, 3)), images.std((1, 2, 3))), strict=False):
        values = described[name]
        assert values.dtype == np.float32
        np.testing.assert_allclose(values.astype(np.float64), expected, rtol=1e-5)


@pytest.mark.parametrize("level", [0, 1, 7, 100, 254, 255])
def test_the_deviation_of_a_constant_image_is_exactly_zero(level: int) -> None:
    """The schema of the examples relies on it."""
    for shape in ((28, 28), (3, 3), (301, 299)):
        described = describe(np.full((2, 1, *shape), level, np.uint8))
        assert described["contrast"].tolist() == [0, 0]
        assert described["brightness"].tolist() == [level, level]


def test_the_summary_is_of_all_pixels() -> None:
    images = make_images(50)
    images[3] //= 10
    summary = summarize(pl.DataFrame(describe(images)))
    means = images.mean((1, 2, 3))
    expected = {"mean": images.mean(), "deviation": images.std(), "darkest": means.min(), "brightest": means.max()}
    assert summary == pytest.approx(expected, rel=1e-5)


def test_adversarial_images_are_of_the_spec() -> None:
    made = adversarial(SPEC, 40, seed=1)
    assert {name: inputs.shape for name, inputs in made.items()} == {
        "all_0": (1, 1, 6, 5),
        "all_255": (1, 1, 6, 5),
        "noise": (40, 1, 6, 5),
    }
    assert {inputs.dtype for inputs in made.values()} == {np.dtype(np.uint8)}
    assert set(made["all_0"].flat) == {0}
    assert set(made["all_255"].flat) == {255}
    assert (made["noise"].min(), made["noise"].max()) == (0, 255)
    np.testing.assert_array_equal(adversarial(SPEC, 40, seed=1)["noise"], made["noise"])
    assert not np.array_equal(adversarial(SPEC, 40, seed=2)["noise"], made["noise"])


@pytest.mark.parametrize("planes", [1, 3])
def test_images_are_drawn_side_by_side(planes: int) -> None:
    images = make_images(3, planes)
    kind, _, content = draw(images).partition(",")
    assert kind == "data:image/png;base64"
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    expected = np.concatenate([*images.transpose(0, 2, 3, 1)], axis=1)
    np.testing.assert_array_equal(drawn.reshape(expected.shape), expected)
