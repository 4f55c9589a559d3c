"""Configure the random changes of training images; see `augmentation` in params.yaml."""

from typing import Annotated

from pydantic import Field

from stages.core.config.section import Section, Share

Concentration = Annotated[float, Field(ge=0, le=100)]


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
