"""Describe a trained model, without its weights and without PyTorch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from stages.core.config.section import Section, Sha256, Share
from stages.core.examples.spec import Spec
from stages.core.files.errors import UserError
from stages.core.files.layout import MANIFEST, MODEL, NORMALIZE, NORMALIZED
from stages.core.training.config import Recipe


class Manifest(Section):
    """Hold everything that is needed to use a model, and what it was made from."""

    format: Literal[5]  # Earlier formats had fewer fields, or other networks of the same shapes.
    recipe: str
    settings: Recipe
    dataset: str
    spec: Spec
    data_sha256: Sha256  # of artifacts/normalized/, as stage `normalize` wrote it
    environment: str  # processes, device, precision and version of PyTorch
    epoch: int  # the one with the lowest validation loss
    weights: int  # their number in the model
    temperature: Annotated[float, Field(gt=0)]  # divides the network's logits
    unsure_below: Share  # a confidence, chosen on the validation split
    unsure_by: Literal["risk", "coverage"]  # the target in params.yaml that decided `unsure_below`


def read_manifest(path: Path = MANIFEST) -> Manifest:
    """Return the manifest in a JSON file; raise `UserError` if it is not one of this version."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} is not a manifest of this version: {error}") from None


def check_data(manifest: Manifest) -> None:
    """Raise `UserError` unless the model was trained on the data that stage `normalize` wrote last."""
    if manifest.data_sha256 != NORMALIZE.digest(NORMALIZED):
        raise UserError(f"{MODEL} was not trained on the data in {NORMALIZED}; `dvc repro` trains it again")
