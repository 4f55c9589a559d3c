"""Configure the random changes of training images; see `augmentation` in params.yaml."""

from typing import Annotated

from pydantic import Field

from stages.core.config.section import Section


class Augmentation(Section):
    """Limit the random changes, which are drawn for each image of each batch; 0 turns one off."""

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
