"""Configure export and the parity check; see `export` and `parity` in params.yaml."""

from typing import Annotated

from pydantic import Field

from stages.core.config.section import BatchSize, Section


class Export(Section):
    """Configure stage `export`."""

    opset: Annotated[int, Field(ge=18, le=23)]
    """The version of the ONNX operator set."""


class Parity(Section):
    """Configure stage `parity`."""

    batch_sizes: Annotated[list[BatchSize], Field(min_length=1, max_length=100)]
    """The batch sizes at which the test images are compared."""
    noise_images: Annotated[int, Field(gt=0, le=10_000)]
    """The number of random inputs to compare as well, in one batch, besides one of all 0 and one of all 255."""
    max_abs_diff: Annotated[float, Field(gt=0, le=1)]
    """The largest allowed difference between a logit of ONNX Runtime and the same logit of PyTorch."""
