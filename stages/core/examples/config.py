"""Configure the random changes of training images; see `augmentation` in params.yaml."""

from typing import Annotated

from pydantic import Field

from stages.core.config.section import Section


class Augmentation(Section):
    """Bound random changes, drawn anew for each image of each batch; 0 turns one off."""

    shift: Annotated[int, Field(ge=0, le=64)]
    """Whole pixels, in each direction."""
    rotation: Annotated[float, Field(ge=0, le=180)]
    """Degrees, in each direction."""
    scale: Annotated[float, Field(ge=0, le=0.9)]
    """The share by which an image becomes larger or smaller."""
    shear: Annotated[float, Field(ge=0, le=60)]
    """Degrees, in each direction."""
    elastic: Annotated[float, Field(ge=0, le=16)]
    """The standard deviation of a smooth displacement, in pixels."""
