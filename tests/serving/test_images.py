"""Test which bodies are accepted, and that the response to any other says what is wrong with it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException
from numpy.typing import NDArray
from PIL import Image

from serving import app
from serving.body import Body
from stages.core.deploy.onnx_model import OnnxModel
from tests.serving.client import EMPTY_PAGE, FORM, JSON, ONE, SEVEN, form, huge, in_json, labels, picture, pixels, post
from tests.serving.conftest import COLORS, Service, bar, colored, enlarged, write_places_model


def test_pictures_of_any_kind(service: Service) -> None:
    assert labels(post(service, picture(SEVEN))) == ["7"]
    assert labels(post(service, picture(SEVEN, ink="white", paper="navy"))) == ["7"]
    assert labels(post(service, picture(ONE, "JPEG"), "image/jpeg")) == ["1"]
    assert labels(post(service, picture(ONE), "IMAGE/PNG; charset=binary")) == ["1"]


def test_a_form_with_several_pictures(service: Service) -> None:
    files = [("files", (f"{index}.png", picture(strokes))) for index, strokes in enumerate((ONE, SEVEN, SEVEN, ONE))]
    assert labels(service.client.post("/predict", files=files)) == ["1", "7", "7", "1"]
    nameless = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + picture(SEVEN) + b"\r\n--x--\r\n"
    assert labels(post(service, nameless, "multipart/form-data; boundary=x")) == ["7"]


def blank_after(image: list[list[int]]) -> dict[str, Any]:
    return {"images": [image, *pixels(200)["images"]]}


def many_pixels() -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + huge(6000) + b"\r\n"
    return part * 3 + b"--x--\r\n"


WRONG: dict[str, tuple[str, bytes, int, str]] = {
    "no kind": ("", b"", 415, "Content-Type is 'missing', allowed: image/png, image/jpeg, image/webp"),
    "another kind": ("text/plain", b"7", 415, "'text/plain'"),
    "nothing": ("image/png", b"", 422, "the picture is not a picture: it is empty"),
    "no picture": ("image/jpeg", b"seven", 422, "none of PNG, JPEG, WEBP, GIF, BMP, TIFF"),
    "half a picture": ("image/png", picture(ONE)[:100], 422, "the picture cannot be read: "),
    "a picture too large": ("image/png", huge(10_100), 422, "10,100 x 10,100 pixels, more than the limit of"),
    "too large together": (FORM, many_pixels(), 422, "have 108,000,000 pixels, allowed: at most 100,000,000 in all"),
    "too long": ("image/png", b"x" * 16_000_001, 413, "more than the allowed 16,000,000 bytes"),
    "no boundary": ("multipart/form-data", form("files"), 400, "the form is invalid"),
    "another field": (FORM, form("file"), 422, "the form has a field 'file'; the only allowed field is 'files'"),
    "no form": (FORM, b"seven", 400, "the form is invalid"),
    "an empty form": (FORM, b"--x--\r\n", 422, "has no field 'files'"),
    "half a form": (FORM, form("files")[:100], 422, "or is incomplete"),
    "too many files": (FORM, form("files", 257), 422, "more than the allowed 256 files"),
    "no JSON": (JSON, b"seven", 422, "the body: Invalid JSON"),
    "JSON in Latin-1": (JSON, b'{"images": "\xe9"}', 422, "Invalid JSON"),
    "deep JSON": (JSON, b"[" * 100_000, 422, "Invalid JSON"),
    "no images": (JSON, b"{}", 422, "images: Field required"),
    "another name": (JSON, in_json(pixels() | {"image": 1}), 422, "image: Extra inputs"),
    "an empty batch": (JSON, b'{"images": []}', 422, "images: List should have at least 1 item"),
    "a large batch": (JSON, in_json(pixels(count=257)), 422, "at most 256 items"),
    "a large pixel": (JSON, in_json(pixels(256)), 422, "less than or equal to 255"),
    "a negative pixel": (JSON, in_json(pixels(-1)), 422, "greater than or equal to 0"),
    "a broken pixel": (JSON, in_json(pixels(0.5)), 422, "multiple of 1"),
    "a pixel that is none": (JSON, in_json(pixels(float("nan"))), 422, "images.0.0.0"),
    "a pixel as text": (JSON, in_json(pixels("7")), 422, "a valid number"),
    "a pixel as truth": (JSON, in_json(pixels(True)), 422, "a valid number"),
    "another size": (JSON, in_json(pixels(height=20)), 422, "allowed: 28 rows of 28 pixels"),
    "ragged rows": (JSON, in_json({"images": [[[0] * 28, [0] * 27] * 14]}), 422, "27 or 28"),
    "millions of errors": (JSON, in_json(pixels(-1, 1000, 1000, 3)), 422, "greater than or equal to 0"),
    "a blank picture": ("image/png", EMPTY_PAGE, 422, "the picture is blank; there is nothing to classify"),
    "a blank picture in a form": (FORM, form("files", content=EMPTY_PAGE), 422, "a.png is blank"),
    "blank pixels": (JSON, in_json(blank_after([[0, 255] * 14] * 28)), 422, "images.1: is blank"),
    "no rows": (JSON, b'{"images": [[]]}', 422, "0 rows of no pixels, allowed: 28"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_answered_with_the_mistake(service: Service, case: str) -> None:
    kind, content, status, message = WRONG[case]
    answer = post(service, content, kind) if kind else service.client.post("/predict", content=content)
    assert (answer.status_code, message in answer.json()["detail"]) == (status, True), answer.text


def show(image_HWC: NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("plane", range(3))
def test_a_colour_model_answers_png_jpeg_and_pixels_alike(color_service: Service, plane: int) -> None:
    image_HWC = colored(plane)
    answers = [
        post(color_service, show(image_HWC), images=True),
        post(color_service, show(enlarged(image_HWC)), images=True),
        post(color_service, show(image_HWC, "WEBP", lossless=True), "image/webp", images=True),
        post(color_service, in_json({"images": [image_HWC.tolist()]}), JSON, images=True),
    ]
    assert [labels(answer) for answer in answers] == [[COLORS[plane]]] * 4
    assert answers[0].json() == answers[1].json() == answers[2].json() == answers[3].json()
    assert answers[0].json()["predictions"][0]["image"] == image_HWC.tolist()
    jpeg = post(color_service, show(image_HWC, "JPEG", quality=95, subsampling=0), "image/jpeg", images=True)
    assert labels(jpeg) == [COLORS[plane]]
    (exact,), (found,) = answers[0].json()["predictions"], jpeg.json()["predictions"]
    assert found["confidence"] == pytest.approx(exact["confidence"], abs=0.01)
    assert np.abs(np.array(found["image"]) - image_HWC.astype(int)).mean() < 5


def test_a_grey_picture_for_a_colour_model(color_service: Service) -> None:
    grey_HW = np.asarray(Image.linear_gradient("L").resize((32, 24)))
    (grey,) = post(color_service, show(grey_HW), images=True).json()["predictions"]
    assert grey["image"] == np.repeat(grey_HW[..., None], 3, axis=2).tolist()
    answer = post(color_service, in_json({"images": [grey_HW.tolist()]}), JSON)
    assert (answer.status_code, answer.json()["detail"]) == (422, "images.0.0.0: Input should be a valid array")


def test_a_colour_picture_for_a_grey_model(tmp_path: Path) -> None:
    model = OnnxModel(write_places_model(tmp_path / "places.onnx"))
    green_HWC = bar(2)[..., None] * np.array([0, 1, 0], np.uint8)
    expected = np.asarray(Image.fromarray(green_HWC).convert("L"))
    (prediction,) = app.answer(model, Body(show(green_HWC), "image/png", None), with_images=True).predictions
    assert (prediction.label, prediction.image) == ("low", expected.tolist())
    with pytest.raises(HTTPException, match=r"images\.0\.0\.0: Input should be a valid number"):
        app.answer(model, Body(in_json({"images": [green_HWC.tolist()]}), JSON, None), with_images=True)


WRONG_COLORS = {
    "two planes": (pixels([1, 2], 24, 32), "images.0.0.0: List should have at least 3 items"),
    "four planes": (pixels([1, 2, 3, 4], 24, 32), "images.0.0.0: List should have at most 3 items"),
    "a large level": (pixels([0, 0, 256], 24, 32), "images.0.0.0.2: Input should be less than or equal to 255"),
    "width and height exchanged": (pixels([0, 0, 255], 32, 24), "images.0: has 32 rows of 24 pixels, allowed: 24 rows"),
    "one colour": (pixels([10, 20, 30], 24, 32), "images.0: is blank"),
}


@pytest.mark.parametrize("case", WRONG_COLORS)
def test_wrong_pixels_for_a_colour_model(color_service: Service, case: str) -> None:
    content, message = WRONG_COLORS[case]
    answer = post(color_service, in_json(content), JSON)
    assert (answer.status_code, message in answer.json()["detail"]) == (422, True), answer.text


def test_the_limit_on_the_pixels_of_a_picture_is_the_models(color_service: Service) -> None:
    answer = post(color_service, huge(1001))
    expected = "the picture has 1,001 x 1,001 pixels, more than the limit of 1,000,000"
    assert (answer.status_code, answer.json()["detail"]) == (422, expected)


def test_the_example_in_the_description_of_a_colour_model(color_service: Service) -> None:
    schema = color_service.client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
    rows = schema["application/json"]["schema"]["properties"]["images"]["items"]
    assert (rows["minItems"], rows["items"]["maxItems"], rows["items"]["items"]["minItems"]) == (24, 32, 3)
    (example,) = schema["application/json"]["examples"].values()
    assert labels(color_service.client.post("/predict", json=example["value"])) == ["red"]
