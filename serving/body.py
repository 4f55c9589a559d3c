"""What `POST /predict` takes: the body of a request made into images for the model, within limits.

Shape suffixes: N images, H x W pixels.
"""

from collections.abc import AsyncGenerator
from typing import Annotated, Any

import numpy as np
from anyio import to_thread
from fastapi import HTTPException, Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from serving.images import decode, fit
from stages.core.errors import UserError

MAX_BODY = 16_000_000  # bytes
MAX_IMAGES = 256
MAX_PIXELS = 50_000_000  # of all pictures together
PICTURES = ("image/png", "image/jpeg")
FORM, JSON = "multipart/form-data", "application/json"
FIELD = "files"


class Pixels(BaseModel):
    """Grey levels as the model takes them, white on black."""

    model_config = ConfigDict(extra="forbid", strict=True)
    images: Annotated[list[list[list[Annotated[int, Field(ge=0, le=255)]]]], Field(min_length=1, max_length=MAX_IMAGES)]


async def read_images(request: Request, height: int, width: int) -> NDArray[np.uint8]:
    """The images [N, H, W] in a request: pictures are made to fit, pixels in JSON taken as they are.

    `HTTPException` says what is wrong with the request, `UserError` what with a picture in it.
    """
    kind = parse_options_header(request.headers.get("content-type"))[0].decode("latin-1")
    if kind == FORM:
        files = await read_form(request)
    elif kind in PICTURES:
        files = [("the picture", await read(request))]
    elif kind == JSON:
        return await to_thread.run_sync(parse_pixels, await read(request), height, width)
    else:
        allowed = ", ".join((*PICTURES, FORM, JSON))
        raise HTTPException(415, f"Content-Type is {kind or 'missing'!r}, allowed are {allowed}")
    return await to_thread.run_sync(fit_pictures, files, height, width)


async def limited(request: Request) -> AsyncGenerator[bytes]:
    """The body, piece by piece, until it is too long: what Content-Length says need not be true, or there."""
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY:
            raise HTTPException(413, f"the body has more than the {MAX_BODY:,} bytes that are allowed")
        yield piece


async def read(request: Request) -> bytes:
    return b"".join([piece async for piece in limited(request)])


async def read_form(request: Request) -> list[tuple[str, bytes]]:
    """Names and contents of the files in a form."""
    try:
        form = await MultiPartParser(request.headers, limited(request), max_files=MAX_IMAGES).parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the form is refused: {error.message}") from None
    try:
        files: list[tuple[str, bytes]] = []
        for field, value in form.multi_items():
            if field != FIELD or not isinstance(value, UploadFile):
                raise HTTPException(422, f"the form's field {field!r} is refused, allowed are files as {FIELD!r}")
            files.append((value.filename or f"file {len(files) + 1}", await value.read()))
    finally:
        await form.close()
    if not files:
        raise HTTPException(422, f"the form has no field {FIELD!r} with a picture")
    return files


def fit_pictures(files: list[tuple[str, bytes]], height: int, width: int) -> NDArray[np.uint8]:
    images, pixels = [], 0
    for name, content in files:
        grey_HW = decode(content, name)
        pixels += grey_HW.size
        if pixels > MAX_PIXELS:
            raise UserError(f"the pictures up to {name} have {pixels:,} pixels, allowed are {MAX_PIXELS:,} in all")
        images.append(fit(grey_HW, height, width))
    return np.stack(images)


def parse_pixels(body: bytes, height: int, width: int) -> NDArray[np.uint8]:
    try:
        images = Pixels.model_validate_json(body).images
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise HTTPException(422, f"{where}: {first['msg']}") from None
    for index, rows in enumerate(images):
        widths = {len(row) for row in rows}
        if len(rows) != height or widths != {width}:
            found = f"{len(rows)} rows of {' or '.join(map(str, sorted(widths))) or 'no'} pixels"
            raise HTTPException(422, f"images.{index}: has {found}, allowed are {height} rows of {width} pixels")
    return np.array(images, np.uint8)


def describe(height: int, width: int) -> dict[str, Any]:
    """All that in OpenAPI's words, for a model that takes images of this size."""
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
        "description": "rows of grey levels, white on black",
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
