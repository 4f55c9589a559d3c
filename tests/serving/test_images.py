"""Test which bodies are accepted, and that the response to any other says what is wrong with it."""

from typing import Any

import pytest

from tests.serving.client import EMPTY_PAGE, FORM, JSON, ONE, SEVEN, form, huge, in_json, labels, picture, pixels, post
from tests.serving.conftest import Service


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
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + huge(5000) + b"\r\n"
    return part * 3 + b"--x--\r\n"


WRONG: dict[str, tuple[str, bytes, int, str]] = {
    "no kind": ("", b"", 415, "Content-Type is 'missing', allowed: image/png, image/jpeg, image/webp"),
    "another kind": ("text/plain", b"7", 415, "'text/plain'"),
    "nothing": ("image/png", b"", 422, "the picture is not a picture: it is empty"),
    "no picture": ("image/jpeg", b"seven", 422, "none of PNG, JPEG, WEBP, GIF, BMP, TIFF"),
    "half a picture": ("image/png", picture(ONE)[:100], 422, "the picture cannot be read: "),
    "a picture too large": ("image/png", huge(7100), 422, "7,100 x 7,100 pixels, allowed: at most 50,000,000"),
    "too large together": (FORM, many_pixels(), 422, "have 75,000,000 pixels, allowed: at most"),
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
    "another size": (JSON, in_json(pixels(height=20)), 422, "must have 28 rows of 28 pixels"),
    "ragged rows": (JSON, in_json({"images": [[[0] * 28, [0] * 27] * 14]}), 422, "27 or 28"),
    "millions of errors": (JSON, in_json(pixels(-1, 1000, 1000, 3)), 422, "greater than or equal to 0"),
    "a blank picture": ("image/png", EMPTY_PAGE, 422, "the picture is blank; there is nothing to classify"),
    "a blank picture in a form": (FORM, form("files", content=EMPTY_PAGE), 422, "a.png is blank"),
    "blank pixels": (JSON, in_json(blank_after([[0, 255] * 14] * 28)), 422, "images.1: is blank"),
    "no rows": (JSON, b'{"images": [[]]}', 422, "0 rows of no pixels, must have 28"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_answered_with_the_mistake(service: Service, case: str) -> None:
    kind, content, status, message = WRONG[case]
    answer = post(service, content, kind) if kind else service.client.post("/predict", content=content)
    assert (answer.status_code, message in answer.json()["detail"]) == (status, True), answer.text
