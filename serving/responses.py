"""Define the responses of the service."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, JsonValue

from stages.core.examples.spec import Spec

# Grey levels, or [red, green, blue].
Rows = list[list[int]] | list[list[list[int]]]
PROVEN = "whether stage `parity` has verified that the outputs of this file match those of the evaluated model"


class Prediction(BaseModel):
    """Describe the prediction for one example."""

    label: str
    confidence: Annotated[float, Field(ge=0, le=1, description="the label's probability")]
    probabilities: Annotated[dict[str, float], Field(description="by class")]
    unsure: Annotated[bool, Field(description="whether the confidence is below the model's `unsure_below`")]
    image: Annotated[Rows | None, Field(description="the model's input: rows of grey levels or colours")] = None


class Answer(BaseModel):
    """Describe the response to `POST /predict`."""

    model: Annotated[str, Field(description="sha256 of the model that made the predictions")]
    predictions: Annotated[list[Prediction], Field(description="one for each image, in the order of the images")]


class Problem(BaseModel):
    """Describe what is wrong with a request, or why it cannot be served at the moment."""

    detail: Annotated[str, Field(description="what is wrong, and what is allowed")]


class Health(BaseModel):
    """Describe the response to `GET /health`."""

    status: Literal["ok", "model rejected"]
    model: Annotated[str, Field(description="sha256 of the model that is served")]
    since: datetime
    proven: Annotated[bool, Field(description=PROVEN)]
    rejected: Annotated[str | None, Field(description="why the newest file is not served")]


class ModelFacts(BaseModel):
    """Describe the response to `GET /model`."""

    sha256: str
    recipe: str | None
    dataset: str | None
    data_sha256: Annotated[str | None, Field(description="sha256 of the normalized data that it was trained on")]
    spec: Annotated[Spec, Field(description="the inputs that the model takes, and its classes")]
    unsure_below: Annotated[float, Field(description="the confidence below which a prediction is unsure")]
    operators: Annotated[dict[str, int], Field(description="the number of ONNX nodes of each kind")]
    proven: Annotated[bool, Field(description=PROVEN)]
    metrics: Annotated[dict[str, JsonValue], Field(description="the metrics of the pipeline's last run, by file")]
