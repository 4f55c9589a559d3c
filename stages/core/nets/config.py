"""Configure the networks; see `model` in the recipes of params.yaml.

At its bounds no network has more than three billion weights.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.core.config.section import Section

Width = Annotated[int, Field(gt=0, le=8192)]  # of a fully connected layer
Channels = Annotated[int, Field(gt=0, le=2048)]  # of a convolution
Features = Annotated[int, Field(gt=0, le=4096)]  # of a recurrent layer
Depth = Annotated[int, Field(gt=0, le=64)]  # layers of a block
Dropout = Annotated[float, Field(ge=0, lt=1)]  # share of the activations that training drops


class MlpConfig(Section):
    """Configure fully connected layers."""

    name: Literal["mlp"]
    hidden: Annotated[list[Width], Field(max_length=16)]
    dropout: Dropout


class ConvNetConfig(Section):
    """Configure blocks of unpadded convolutions: each takes off 2 pixels each way, the first one 4.

    All blocks but the last halve height and width.
    """

    name: Literal["convnet"]
    channels: Annotated[  # of the convolutions of each block
        list[Annotated[list[Channels], Field(min_length=1, max_length=4)]], Field(min_length=1, max_length=4)
    ]
    stem: Literal["pool", "stride"]  # what halves in the first block: max-pool, or a convolution of stride 2
    head: Literal["flatten", "max"]
    dropout: Dropout


class VggConfig(Section):
    """Configure a VGG."""

    name: Literal["vgg"]
    layers: Annotated[list[Channels | Literal["M"]], Field(min_length=1, max_length=32)]  # channels, or M: max-pool
    dropout: Dropout

    @field_validator("layers")
    @classmethod
    def begins_with_channels(cls, layers: list[int | str]) -> list[int | str]:
        if layers[0] == "M":
            raise ValueError("the first layer must be a number of channels")
        return layers


class ResNetConfig(Section):
    """Configure a ResNet of basic blocks."""

    name: Literal["resnet"]
    blocks: Annotated[list[Depth], Field(min_length=4, max_length=4)]  # of 64, 128, 256 and 512 channels


class DenseNetConfig(Section):
    """Configure a DenseNet."""

    name: Literal["densenet"]
    growth_rate: Annotated[int, Field(gt=0, le=128)]
    blocks: Annotated[list[Depth], Field(min_length=1, max_length=4)]  # layers in each
    features: Channels  # of the stem
    dropout: Dropout


class RecurrentConfig(Section):
    """Configure an LSTM or a GRU."""

    name: Literal["lstm", "gru"]
    hidden: Features
    layers: Annotated[int, Field(ge=1, le=8)]
    dropout: Dropout


class TransformerConfig(Section):
    """Configure a transformer encoder over patches."""

    name: Literal["transformer"]
    patch: Annotated[int, Field(gt=0, le=1024)]  # pixels, each way
    dim: Annotated[int, Field(gt=0, le=2048)]
    heads: Annotated[int, Field(gt=0, le=2048)]
    layers: Annotated[int, Field(ge=1, le=24)]
    dropout: Dropout

    @model_validator(mode="after")
    def heads_divide_dim(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide dim ({self.dim})")
        return self


class WaveNetConfig(Section):
    """Configure dilated causal convolutions over the pixels."""

    name: Literal["wavenet"]
    stride: Annotated[int, Field(gt=0, le=1024)]  # pixels in one step
    channels: Channels
    layers: Annotated[int, Field(ge=1, le=12)]
    dropout: Dropout


NetConfig = Annotated[
    MlpConfig
    | ConvNetConfig
    | VggConfig
    | ResNetConfig
    | DenseNetConfig
    | RecurrentConfig
    | TransformerConfig
    | WaveNetConfig,
    Field(discriminator="name"),
]
