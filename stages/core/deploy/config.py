"""Configure evaluation, export and the proof of parity; see `evaluate`, `export` and `parity` in params.yaml."""

from typing import Annotated

from pydantic import Field

from stages.core.config.section import BatchSize, Section


class Evaluate(Section):
    """Configure stage `evaluate`."""

    batch_size: BatchSize


class Export(Section):
    """Configure stage `export`."""

    opset: Annotated[int, Field(ge=18, le=23)]


class Parity(Section):
    """Configure stage `parity`."""

    batch_sizes: Annotated[list[BatchSize], Field(min_length=1, max_length=100)]
    noise_images: Annotated[int, Field(gt=0, le=10_000)]  # They are one batch.
    max_abs_diff: Annotated[float, Field(gt=0, le=1)]  # between logits
