"""Define the answers of the service."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, JsonValue

from stages.core.examples.spec import Spec

PROVEN = "whether stage `parity` has proven that this file computes what the evaluated model computes"


class Prediction(BaseModel):
    """Answer for one example."""

    label: str
    confidence: Annotated[float, Field(ge=0, le=1, description="the label's probability")]
    probabilities: Annotated[dict[str, float], Field(description="by class")]
    unsure: Annotated[bool, Field(description="whether the confidence is below the model's `unsure_below`")]
    image: Annotated[list[list[int]] | None, Field(description="the input of the model: rows of grey levels")] = None


class Answer(BaseModel):
    """Answer `POST /predict`."""

    model: Annotated[str, Field(description="sha256 of the model that answers")]
    predictions: Annotated[list[Prediction], Field(description="one for each image, in their order")]


class Problem(BaseModel):
    """Answer a request that is wrong, or that cannot be answered now."""

    detail: Annotated[str, Field(description="what is wrong, and what is allowed")]


class Health(BaseModel):
    """Answer `GET /health`."""

    status: Literal["ok", "model rejected"]
    model: Annotated[str, Field(description="sha256 of the model that is served")]
    since: datetime
    proven: Annotated[bool, Field(description=PROVEN)]
    rejected: Annotated[str | None, Field(description="why the newest file is not served")]


class ModelFacts(BaseModel):
    """Answer `GET /model`."""

    sha256: str
    recipe: str | None
    dataset: str | None
    data_sha256: Annotated[str | None, Field(description="of the normalized data that it was trained on")]
    spec: Annotated[Spec, Field(description="what the model takes, and its classes")]
    unsure_below: Annotated[float, Field(description="a prediction of less confidence is unsure")]
    operators: Annotated[dict[str, int], Field(description="the number of ONNX nodes of each kind")]
    proven: Annotated[bool, Field(description=PROVEN)]
    metrics: Annotated[dict[str, JsonValue], Field(description="of the pipeline's last run, by stage")]
