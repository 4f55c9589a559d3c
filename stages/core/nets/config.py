"""Configure the networks; see `model` in the recipes of params.yaml.

Within these bounds, no network has more than three billion weights.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.core.config.section import Section

Width = Annotated[int, Field(gt=0, le=8192)]  # of a fully connected layer
Channels = Annotated[int, Field(gt=0, le=2048)]  # of a convolution
Features = Annotated[int, Field(gt=0, le=4096)]  # of a recurrent layer
Depth = Annotated[int, Field(gt=0, le=64)]  # layers of a block
Dropout = Annotated[float, Field(ge=0, lt=1)]  # probability that training zeroes an activation


class MlpConfig(Section):
    """Configure fully connected layers."""

    name: Literal["mlp"]
    hidden: Annotated[list[Width], Field(max_length=16)]
    """The widths of the hidden layers."""
    dropout: Dropout
    """The dropout probability after each hidden layer."""


class ConvNetConfig(Section):
    """Configure blocks of convolutions. All blocks but the last halve height and width.

    Without padding, each convolution also reduces height and width by 2 pixels, the first one by 4.
    """

    name: Literal["convnet"]
    channels: Annotated[
        list[Annotated[list[Channels], Field(min_length=1, max_length=4)]], Field(min_length=1, max_length=4)
    ]
    """The output channels of the convolutions of each block."""
    stem: Literal["pool", "stride"]
    """The operation that halves the size in the first block: max pooling, or a convolution of stride 2."""
    padding: Literal["valid", "same"]
    """The padding of the convolutions: none, or zeros around the image that keep its height and width."""
    head: Literal["flatten", "max"]
    """The features that the classifier sees: all positions, or the maximum of each channel."""
    dropout: Dropout
    """The dropout probability before the classifier."""


class VggConfig(Section):
    """Configure a VGG."""

    name: Literal["vgg"]
    layers: Annotated[list[Channels | Literal["M"]], Field(min_length=1, max_length=32)]
    """The output channels of each convolution, or M for max pooling."""
    dropout: Dropout
    """The dropout probability in the classifier."""

    @field_validator("layers")
    @classmethod
    def begins_with_channels(cls, layers: list[int | str]) -> list[int | str]:
        if layers[0] == "M":
            raise ValueError("the first layer must be a number of channels")
        return layers


class ResNetConfig(Section):
    """Configure a ResNet of basic blocks."""

    name: Literal["resnet"]
    blocks: Annotated[list[Depth], Field(min_length=4, max_length=4)]
    """The number of basic blocks of 64, 128, 256 and 512 channels."""


class DenseNetConfig(Section):
    """Configure a DenseNet."""

    name: Literal["densenet"]
    growth_rate: Annotated[int, Field(gt=0, le=128)]
    """The number of channels that each layer adds."""
    blocks: Annotated[list[Depth], Field(min_length=1, max_length=4)]
    """The number of layers of each dense block."""
    features: Channels
    """The number of output channels of the first convolution."""
    dropout: Dropout
    """The dropout probability of each layer's output."""


class RecurrentConfig(Section):
    """Configure an LSTM or a GRU."""

    name: Literal["lstm", "gru"]
    hidden: Features
    """The number of features in the hidden state."""
    layers: Annotated[int, Field(ge=1, le=8)]
    """The number of recurrent layers."""
    dropout: Dropout
    """The dropout probability between layers and before the classifier."""


class TransformerConfig(Section):
    """Configure a transformer encoder over patches."""

    name: Literal["transformer"]
    patch: Annotated[int, Field(gt=0, le=1024)]
    """The side of a patch in pixels; it must divide the height and the width of an image."""
    dim: Annotated[int, Field(gt=0, le=2048)]
    """The number of features of each patch."""
    heads: Annotated[int, Field(gt=0, le=2048)]
    """The number of attention heads, which must divide `dim`."""
    layers: Annotated[int, Field(ge=1, le=24)]
    """The number of encoder layers."""
    dropout: Dropout
    """The dropout probability in the encoder."""

    @model_validator(mode="after")
    def heads_divide_dim(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide dim ({self.dim})")
        return self


class WaveNetConfig(Section):
    """Configure dilated causal convolutions over the pixels."""

    name: Literal["wavenet"]
    stride: Annotated[int, Field(gt=0, le=1024)]
    """The number of pixels in one step; it must divide the number of pixels in an image."""
    channels: Channels
    """The number of channels of each layer."""
    layers: Annotated[int, Field(ge=1, le=12)]
    """The number of layers; each doubles the dilation."""
    dropout: Dropout
    """The dropout probability before the classifier."""


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
