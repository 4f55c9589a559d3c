"""State which columns the tables about a data set have for images."""

import pandera.polars as pa
import polars as pl

from stages.core.examples.picture import Header

# A file that is not a picture has no header.
HEADER = {
    "width": pa.Column(pl.Int64, pa.Check.gt(0), nullable=True),
    "height": pa.Column(pl.Int64, pa.Check.gt(0), nullable=True),
    "mode": pa.Column(pl.String, nullable=True),
    "grey": pa.Column(pl.Boolean, nullable=True),
}
assert [*HEADER] == [*Header._fields]

BRIGHTNESS = "mean of an image's pixels (0 to 255)"
INPUT = {
    "brightness": pa.Column(pl.Float32, pa.Check.in_range(0, 255), nullable=True),
    "contrast": pa.Column(pl.Float32, pa.Check.in_range(0, 128), nullable=True),
    "likeness": pa.Column(pl.UInt64, nullable=True),
}
