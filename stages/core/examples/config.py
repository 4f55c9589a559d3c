"""Configure the random changes of training images; see `augmentation` in params.yaml."""

from typing import Annotated

from pydantic import Field

from stages.core.config.section import Section


class Augmentation(Section):
    """Bound random changes, drawn anew for each image of each batch; 0 turns one off."""

    shift: Annotated[int, Field(ge=0, le=64)]  # whole pixels, each way
    rotation: Annotated[float, Field(ge=0, le=180)]  # degrees, each way
    scale: Annotated[float, Field(ge=0, le=0.9)]  # share, larger or smaller
    shear: Annotated[float, Field(ge=0, le=60)]  # degrees, each way
    elastic: Annotated[float, Field(ge=0, le=16)]  # pixels, the standard deviation of the displacements
