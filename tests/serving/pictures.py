"""Provide schemathesis with pictures, and make sure that no image is blank, which a schema cannot rule out."""

import io
from typing import Any

import schemathesis
from hypothesis import strategies as st
from PIL import Image

from stages.core.examples.picture import FORMATS

SIDES = st.integers(2, 60)


def pictures(kind: str) -> st.SearchStrategy[bytes]:
    def encode(mode: str, width: int, height: int, turn: int) -> bytes:
        file = io.BytesIO()
        Image.linear_gradient("L").rotate(turn).resize((width, height)).convert(mode).save(file, kind)
        return file.getvalue()

    return st.builds(encode, st.sampled_from(["L", "RGB"]), SIDES, SIDES, st.sampled_from([0, 90, 180]))


MEDIA_TYPES = {f"image/{kind.lower()}": kind for kind in FORMATS}
for media_type, kind in {**MEDIA_TYPES, ", ".join(MEDIA_TYPES): "PNG"}.items():
    schemathesis.openapi.media_type(media_type, pictures(kind))


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    assert case.meta is not None
    if case.meta.generation.mode.is_positive and case.media_type == "application/json":
        body: Any = case.body
        for image in body["images"]:
            colored = isinstance(image[0][0], list)
            image[0][:2] = [[0, 0, 0], [255, 255, 255]] if colored else [0, 255]
