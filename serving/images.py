"""Turn the body of `POST /predict` into images for the model: one picture, a form with several, or pixels in JSON.

Shape suffixes: N images, C planes, H x W pixels.
"""

import logging
from typing import Annotated, Any

import numpy as np
from fastapi import HTTPException
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field as FormField
from python_multipart.multipart import File, FormParser

from serving.body import FORM, JSON, MAX_BODY, PICTURES, Body
from stages.core.examples import image, picture
from stages.core.examples.spec import Spec
from stages.core.files.errors import UserError

MAX_IMAGES = 256
MAX_PIXELS = 100_000_000  # of all pictures together
FIELD = "files"

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # It would log the content of a form.

# A pixel is read as a float, because JSON does not distinguish 7.0 from 7.
Level = Annotated[float, Field(strict=True, ge=0, le=255, multiple_of=1, allow_inf_nan=False)]
Color = Annotated[list[Level], Field(min_length=3, max_length=3)]
# Validation stops at the first error, because the messages of millions would take gigabytes.
GreyRows = Annotated[list[Annotated[list[Level], FailFast()]], FailFast()]
ColorRows = Annotated[list[Annotated[list[Color], FailFast()]], FailFast()]


class GreyPixels(BaseModel):
    """Hold rows of grey levels like those that the model was trained on; MNIST's are white on black."""

    model_config = ConfigDict(extra="forbid")
    images: Annotated[list[GreyRows], Field(min_length=1, max_length=MAX_IMAGES), FailFast()]


class ColorPixels(BaseModel):
    """Hold rows of pixels [red, green, blue]."""

    model_config = ConfigDict(extra="forbid")
    images: Annotated[list[ColorRows], Field(min_length=1, max_length=MAX_IMAGES), FailFast()]


def to_inputs(body: Body, spec: Spec) -> NDArray[np.uint8]:
    """Return inputs [N, C, H, W] for the model: pictures are made to fit, pixels in JSON are taken as they are.

    Raises `HTTPException` for a mistake in the request and `UserError` for a mistake in one of its pictures.
    """
    if body.kind == JSON:
        return parse_pixels(body.content, spec)
    return read_pictures(parse_form(body) if body.kind == FORM else [("the picture", body.content)], spec)


def to_rows(input_CHW: NDArray[np.uint8]) -> list[Any]:
    """Return an input of the model as JSON has it: rows of grey levels, or of [red, green, blue]."""
    return (input_CHW[0] if len(input_CHW) == 1 else input_CHW.transpose(1, 2, 0)).tolist()


def parse_form(body: Body) -> list[tuple[str, bytes]]:
    """Return the names and contents of the pictures in a form; to the parser, one without a file name is a field."""
    files: list[tuple[str, bytes]] = []

    def take(name: bytes | None, field: bytes | None, content: bytes) -> None:
        if field != FIELD.encode():
            found = (field or b"").decode(errors="replace")
            raise HTTPException(422, f"the form has a field {found!r}; the only allowed field is {FIELD!r}")
        if len(files) == MAX_IMAGES:
            raise HTTPException(422, f"the form has more than the allowed {MAX_IMAGES} files")
        files.append((name.decode(errors="replace") if name else f"file {len(files) + 1}", content))

    def take_file(file: File) -> None:
        file.file_object.seek(0)
        take(file.file_name, file.field_name, file.file_object.read())

    def take_field(field: FormField) -> None:
        take(None, field.field_name, field.value or b"")

    try:
        config = {"MAX_MEMORY_FILE_SIZE": MAX_BODY}  # This keeps the parser from writing temporary files.
        parser = FormParser(FORM, take_field, take_file, boundary=body.boundary, config=config)
        parser.write(body.content)
        parser.finalize()
    except FormParserError as error:
        raise HTTPException(400, f"the form is invalid: {error}") from None
    if not files:
        raise HTTPException(422, f"the form has no field {FIELD!r} with a picture, or is incomplete")
    return files


def read_pictures(files: list[tuple[str, bytes]], spec: Spec) -> NDArray[np.uint8]:
    """Return the inputs made from pictures, given by name and content."""
    pixels = 0
    for name, content in files:
        header = picture.read_header(content, name)
        pixels += header.width * header.height
        if pixels > MAX_PIXELS and len(files) > 1:
            raise UserError(f"the pictures up to {name} have {pixels:,} pixels, allowed: at most {MAX_PIXELS:,} in all")
    return np.stack([image.open_picture(content, name, spec.shape, spec.opening) for name, content in files])


def parse_pixels(content: bytes, spec: Spec) -> NDArray[np.uint8]:
    """Return the images [N, C, H, W] in a JSON body."""
    planes, height, width = spec.shape
    try:
        model = GreyPixels if planes == 1 else ColorPixels
        images: list[list[Any]] = model.model_validate_json(content).images
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise HTTPException(422, f"{where}: {first['msg']}") from None
    for index, rows in enumerate(images):
        widths = {len(row) for row in rows}
        if len(rows) != height or widths != {width}:
            found = f"{len(rows)} rows of {' or '.join(map(str, sorted(widths))) or 'no'} pixels"
            raise HTTPException(422, f"images.{index}: has {found}, allowed: {height} rows of {width} pixels")
    inputs_NCHW = np.array(images, np.uint8).reshape(-1, height, width, planes).transpose(0, 3, 1, 2)
    blank_N = image.find_blank(inputs_NCHW)
    if blank_N.any():
        raise HTTPException(422, f"images.{blank_N.argmax()}: {image.BLANK}")
    return np.ascontiguousarray(inputs_NCHW)


def describe_bodies(spec: Spec) -> dict[str, Any]:
    """Return the OpenAPI description of the allowed bodies, for a model with this spec."""
    planes, height, width = spec.shape
    level = {"type": "integer", "minimum": 0, "maximum": 255}

    def array(items: dict[str, Any], count: int) -> dict[str, Any]:
        return {"type": "array", "minItems": count, "maxItems": count, "items": items}

    rows = array(array(level if planes == 1 else array(level, planes), width), height)
    pixels = "grey levels (MNIST: white on black)" if planes == 1 else "pixels [red, green, blue]"
    rows["description"] = f"rows of {pixels} like those of the training images, not all equal"
    images = {"type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": rows}
    files = {"type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": {"type": "string", "format": "binary"}}

    def example_pixel(y: int, x: int) -> int | list[int]:
        """Return a pixel of a vertical line, or of a gradient of colours."""
        if planes > 1:
            return [255, y % 256, x % 256]
        return 255 if height // 6 <= y < height - height // 6 and x == width // 2 else 0

    one = [[example_pixel(y, x) for x in range(width)] for y in range(height)]

    def closed(**properties: object) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}

    return {
        "required": True,
        "description": f"Up to {MAX_IMAGES} images, {MAX_BODY:,} bytes and {MAX_PIXELS:,} pixels",
        "content": {
            JSON: {"schema": closed(images=images), "examples": {"an image": {"value": {"images": [one]}}}},
            FORM: {"schema": closed(**{FIELD: files}), "encoding": {FIELD: {"contentType": ", ".join(PICTURES)}}},
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in PICTURES},
        },
    }
