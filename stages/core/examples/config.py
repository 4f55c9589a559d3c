"""Configure how pictures become images of one size, and the random changes of training images."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.core.config.section import Section, Share
from stages.core.examples.spec import Color, Resize

Side = Annotated[int, Field(ge=1, le=4096)]
Concentration = Annotated[float, Field(ge=0, le=100)]


class Pictures(Section):
    """Configure how a picture becomes an input of a network."""

    kind: Literal["image"]
    """The kind of the examples."""
    size: Literal["auto"] | Side | Annotated[list[Side], Field(min_length=2, max_length=2)]
    """The size of an input: a side or [height, width]. `auto` is the pictures' own size if all have the same of at most
    64 pixels a side, else a square whose side is their median shorter side, at most 64."""
    color: Literal["auto"] | Color
    """The planes of an input: one of grey levels, or red, green and blue. `auto` is grey if all pictures are."""
    resize: Resize
    """The way to make a picture of another shape fit: `fit` adds black borders, `crop` cuts off what protrudes,
    `stretch` distorts."""
    centre_ink: bool
    """Scale and centre a picture of another size by its ink, as MNIST's digits were; it needs grey inputs."""
    max_pixels: Annotated[int, Field(ge=1, le=10**10)]
    """The largest number of pixels that a picture may have; it keeps a small file from filling the memory."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.centre_ink and self.color == "rgb":
            raise ValueError("centre_ink needs color: grey")
        return self


class Augmentation(Section):
    """Limit the random changes, which are drawn for each image of each batch; 0 turns one off.

    If `mixup` and `cutmix` are both above 0, each batch draws one of the two.
    """

    shift: Annotated[int, Field(ge=0, le=64)]
    """The largest shift in each direction, in whole pixels."""
    rotation: Annotated[float, Field(ge=0, le=180)]
    """The largest rotation in each direction, in degrees."""
    scale: Annotated[float, Field(ge=0, le=0.9)]
    """The largest share by which an image is enlarged or reduced."""
    shear: Annotated[float, Field(ge=0, le=60)]
    """The largest shear in each direction, in degrees."""
    elastic: Annotated[float, Field(ge=0, le=16)]
    """The standard deviation of a smooth displacement, in pixels."""
    flip: Share
    """The probability that an image is mirrored left to right."""
    crop: Share
    """The smallest share of the area of a random crop, which is enlarged to the whole image; 1 turns it off, too."""
    color: Share
    """The largest share by which brightness, contrast and, for three planes, saturation change."""
    erase: Share
    """The area of a square at a random place that is filled with the image's mean, as a share of the image."""
    mixup: Concentration
    """Alpha of the distribution Beta(alpha, alpha) of the shares in which two images are blended."""
    cutmix: Concentration
    """Alpha of the distribution Beta(alpha, alpha) of the area of a rectangle that is replaced by another image."""
