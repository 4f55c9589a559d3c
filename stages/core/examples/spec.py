"""Define the spec of a data set's examples.

Stage `normalize` writes the spec beside the data; the checkpoint and the metadata of the ONNX file carry it.
"""

from typing import Annotated, Literal

from pydantic import Field

from stages.core.config.section import Section

Positive = Annotated[int, Field(gt=0)]


class Spec(Section):
    """Describe the raw input of a model and the classes that it tells apart."""

    kind: Literal["image"]
    shape: tuple[Positive, Positive, Positive]  # C planes, H x W pixels
    dtype: Literal["uint8"]
    classes: Annotated[list[str], Field(min_length=2)]  # names of labels 0, 1, ...
    mean: float  # A raw value x enters the network as (x / 255 - mean) / std.
    std: float
    centre_ink: bool  # how a picture of another size becomes an input; see `fit` in stages/core/examples/image.py
