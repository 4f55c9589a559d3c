"""Specify what one example of a data set is.

Stage `normalize` writes the spec beside the data; the checkpoint and the metadata of the ONNX file carry it.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.core.config.section import Section

Positive = Annotated[int, Field(gt=0)]
Color = Literal["grey", "rgb"]
Resize = Literal["fit", "crop", "stretch"]


class Opening(Section):
    """Describe how a picture file becomes an input; `open_picture` in stages/core/examples/image.py does it."""

    color: Color
    resize: Resize
    centre_ink: bool
    max_pixels: Positive

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.centre_ink and self.color != "grey":
            raise ValueError("centre_ink needs color grey")
        return self


class Spec(Section):
    """Describe the raw input of a model and the classes that it distinguishes."""

    kind: Literal["image"]
    shape: tuple[Positive, Positive, Positive]  # C planes, H x W pixels
    dtype: Literal["uint8"]
    classes: Annotated[list[str], Field(min_length=2)]  # names of label 0, 1, ...
    mean: tuple[float, ...]  # of each plane; a raw value x enters the network as (x / 255 - mean) / std
    std: tuple[float, ...]
    opening: Opening

    @model_validator(mode="after")
    def consistent(self) -> Self:
        planes = {"grey": 1, "rgb": 3}[self.opening.color]
        for field, found in (("shape", self.shape[0]), ("mean", len(self.mean)), ("std", len(self.std))):
            if found != planes:
                raise ValueError(f"{field} must have {planes} planes for color {self.opening.color}, found {found}")
        return self
