"""Hooks of schemathesis: what an `image/png` and an `image/jpeg` may be."""

import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image

SIDES = st.integers(1, 60)


def pictures(kind: str) -> st.SearchStrategy[bytes]:
    def encode(mode: str, width: int, height: int, colour: str) -> bytes:
        file = io.BytesIO()
        Image.new(mode, (width, height), colour).save(file, kind)
        return file.getvalue()

    return st.builds(encode, st.sampled_from(["L", "RGB"]), SIDES, SIDES, st.sampled_from(["black", "white"]))


for media_type, kind in {"image/png": "PNG", "image/jpeg": "JPEG", "image/png, image/jpeg": "PNG"}.items():
    schemathesis.openapi.media_type(media_type, pictures(kind))
