"""What `POST /predict` takes: the body of a request made into images for the model, within limits.

Shape suffixes: N images, H x W pixels.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import HTTPException, Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field as FormField
from python_multipart.multipart import File, FormParser, parse_options_header

from stages.core.examples.image import BLANK, FORMATS, decode, fit
from stages.core.files.errors import UserError

MAX_BODY = 16_000_000  # bytes
MAX_READ = 3 * MAX_BODY  # bytes, before a longer body is refused: most clients look for an answer only after it
MAX_HELD = 64 * MAX_BODY  # bytes of all bodies under way together
RETRY_S = 1  # after which a client that got 503 may try again
MAX_IMAGES = 256
MAX_PIXELS = 50_000_000  # of all pictures together
BODY_S = 30.0  # seconds in which a body must have arrived
PICTURES = tuple(f"image/{name.lower()}" for name in FORMATS)
FORM, JSON = "multipart/form-data", "application/json"
FIELD = "files"

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs what it finds in a form


# a float, for to JSON 7.0 is an integer, too
Grey = Annotated[float, Field(strict=True, ge=0, le=255, multiple_of=1, allow_inf_nan=False)]
# the first error alone: millions of them would take gigabytes
Row = Annotated[list[Grey], FailFast()]
Image = Annotated[list[Row], FailFast()]


class Pixels(BaseModel):
    """Hold grey levels like those that the model was trained on; MNIST's are white on black."""

    model_config = ConfigDict(extra="forbid")
    images: Annotated[list[Image], Field(min_length=1, max_length=MAX_IMAGES), FailFast()]


class Body(NamedTuple):
    content: bytes
    kind: str
    boundary: bytes | None  # of a form


class Room:
    """Limit the memory that all bodies may take together; raise `HTTPException` when it is used up."""

    def __init__(self) -> None:
        self.left = MAX_HELD

    def take(self, size: int) -> None:
        if size > self.left:
            problem = f"too many requests are under way; try again in {RETRY_S} s"
            raise HTTPException(503, problem, {"Retry-After": str(RETRY_S)})
        self.left -= size


@asynccontextmanager
async def received(request: Request, room: Room) -> AsyncGenerator[Body]:
    """Yield a body of an allowed kind; raise `HTTPException` if it is too long, arrives too slowly or finds no room.

    While it arrives, a body takes only as much room as it has bytes so far, so that slow clients do not keep others
    out. Once complete, it takes the room of the largest body, so that the queue for an answer stays shorter than
    clients are willing to wait. The bytes are counted because Content-Length may be wrong or missing. The connection
    is closed when a body is rejected, because an endless one would continue after the answer.
    """
    found, options = parse_options_header(request.headers.get("content-type"))
    kind = found.decode("latin-1")
    if kind not in (allowed := (*PICTURES, FORM, JSON)):
        problem = f"Content-Type is {kind or 'missing'!r}, allowed are {', '.join(allowed)}"
        raise HTTPException(415, problem, {"Connection": "close"})
    content, size, taken = bytearray(), 0, 0
    try:
        try:
            async with asyncio.timeout(BODY_S):
                async for piece in request.stream():
                    size += len(piece)
                    if size <= MAX_BODY:
                        room.take(len(piece))
                        taken = size
                        content += piece
                    elif size > MAX_READ:
                        break
        except TimeoutError:
            problem = f"the body did not arrive within the allowed {BODY_S:g} s"
            raise HTTPException(408, problem, {"Connection": "close"}) from None
        if size > MAX_BODY:
            problem = f"the body has more than the {MAX_BODY:,} bytes that are allowed"
            raise HTTPException(413, problem, {"Connection": "close"})
        room.take(MAX_BODY - size)
        taken = MAX_BODY
        yield Body(bytes(content), kind, options.get(b"boundary"))
    finally:
        room.left += taken


def to_images(body: Body, height: int, width: int, *, centre_ink: bool) -> NDArray[np.uint8]:
    """Return the images [N, H, W] in a body: pictures are made to fit, pixels in JSON are taken as they are.

    `HTTPException` says what is wrong with the request, `UserError` what is wrong with a picture in it.
    """
    if body.kind == JSON:
        return parse_pixels(body.content, height, width)
    files = parse_form(body) if body.kind == FORM else [("the picture", body.content)]
    return fit_pictures(files, height, width, centre_ink=centre_ink)


def parse_form(body: Body) -> list[tuple[str, bytes]]:
    """Return names and contents of the pictures in a form; those without a file name come as its fields."""
    files: list[tuple[str, bytes]] = []

    def take(name: bytes | None, field: bytes | None, content: bytes) -> None:
        if field != FIELD.encode():
            found = (field or b"").decode(errors="replace")
            raise HTTPException(422, f"the form's field {found!r} is refused, allowed is {FIELD!r}")
        if len(files) == MAX_IMAGES:
            raise HTTPException(422, f"the form has more than the {MAX_IMAGES} files that are allowed")
        files.append((name.decode(errors="replace") if name else f"file {len(files) + 1}", content))

    def take_file(file: File) -> None:
        file.file_object.seek(0)
        take(file.file_name, file.field_name, file.file_object.read())

    def take_field(field: FormField) -> None:
        take(None, field.field_name, field.value or b"")

    try:
        config = {"MAX_MEMORY_FILE_SIZE": MAX_BODY}  # no temporary files
        parser = FormParser(FORM, take_field, take_file, boundary=body.boundary, config=config)
        parser.write(body.content)
        parser.finalize()
    except FormParserError as error:
        raise HTTPException(400, f"the form is refused: {error}") from None
    if not files:
        raise HTTPException(422, f"the form has no field {FIELD!r} with a picture, or no end")
    return files


def fit_pictures(files: list[tuple[str, bytes]], height: int, width: int, *, centre_ink: bool) -> NDArray[np.uint8]:
    images, pixels = [], 0
    for name, content in files:
        grey_HW = decode(content, name)
        pixels += grey_HW.size
        if pixels > MAX_PIXELS:
            raise UserError(f"the pictures up to {name} have {pixels:,} pixels, allowed are {MAX_PIXELS:,} in all")
        (image_HW,), (blank,) = fit(grey_HW[None], height, width, centre_ink=centre_ink)
        if blank:
            raise UserError(f"{name} {BLANK}")
        images.append(image_HW)
    return np.stack(images)


def parse_pixels(content: bytes, height: int, width: int) -> NDArray[np.uint8]:
    try:
        images = Pixels.model_validate_json(content).images
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise HTTPException(422, f"{where}: {first['msg']}") from None
    for index, rows in enumerate(images):
        widths = {len(row) for row in rows}
        if len(rows) != height or widths != {width}:
            found = f"{len(rows)} rows of {' or '.join(map(str, sorted(widths))) or 'no'} pixels"
            raise HTTPException(422, f"images.{index}: has {found}, allowed are {height} rows of {width} pixels")
    images_NHW = np.array(images, np.uint8)
    blank_N = images_NHW.min(axis=(1, 2)) == images_NHW.max(axis=(1, 2))
    if blank_N.any():
        raise HTTPException(422, f"images.{blank_N.argmax()}: {BLANK}")
    return images_NHW


def describe(height: int, width: int) -> dict[str, Any]:
    """Return the OpenAPI description of the allowed bodies, for a model that takes images of this size."""
    row = {
        "type": "array",
        "minItems": width,
        "maxItems": width,
        "items": {"type": "integer", "minimum": 0, "maximum": 255},
    }
    image = {
        "type": "array",
        "minItems": height,
        "maxItems": height,
        "items": row,
        "description": "rows of grey levels like those of the training images (MNIST: white on black), not all equal",
    }
    images = {"type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": image}
    files = {"type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": {"type": "string", "format": "binary"}}
    one = [
        [255 if height // 6 <= y < height - height // 6 and x == width // 2 else 0 for x in range(width)]
        for y in range(height)
    ]

    def closed(**properties: object) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}

    return {
        "required": True,
        "description": f"Up to {MAX_IMAGES} images, {MAX_BODY:,} bytes and {MAX_PIXELS:,} pixels",
        "content": {
            JSON: {"schema": closed(images=images), "examples": {"a one": {"value": {"images": [one]}}}},
            FORM: {"schema": closed(**{FIELD: files}), "encoding": {FIELD: {"contentType": ", ".join(PICTURES)}}},
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in PICTURES},
        },
    }
