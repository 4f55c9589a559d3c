"""Define what all sections of params.yaml have in common; each section lives in the package that it configures.

Upper bounds are far above any useful value: they turn a typing slip into a message instead of a machine that runs out
of memory.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]  # It names a folder; DVC allows no dots in it.
NotNegative = Annotated[float, Field(ge=0, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
BatchSize = Annotated[int, Field(gt=0, le=10**6)]


class Section(BaseModel):
    """Hold one section: strict types, every key required, no unknown keys, no infinities.

    The docstring below a field is its description in docs/configuration-reference.md. docs/reference.py reads it from
    the source, because pydantic's `use_attribute_docstrings` would delay the start of every stage.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
