"""Provide a small network of each family, and the spec of what they take."""

from typing import Any

from stages.core.examples.spec import Spec
from stages.core.nets.config import (
    ConvNetConfig,
    DenseNetConfig,
    MlpConfig,
    RecurrentConfig,
    ResNetConfig,
    TransformerConfig,
    VggConfig,
    WaveNetConfig,
)
from tests import conftest


def make_spec(
    shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, mean: float = 0.5, std: float = 0.5
) -> Spec:
    """Return the spec of raw images of this shape, with classes named "0", "1", ..."""
    names = [str(label) for label in range(classes)]
    return conftest.make_spec(shape, names, mean, std)


def mlp(*hidden: int, dropout: float = 0.0) -> MlpConfig:
    return MlpConfig(name="mlp", hidden=list(hidden), dropout=dropout)


def convnet(*channels: list[int], **options: Any) -> ConvNetConfig:
    plain = {"name": "convnet", "stem": "pool", "padding": "valid", "head": "flatten", "dropout": 0.0}
    return ConvNetConfig.model_validate(plain | {"channels": list(channels)} | options)


VGG = VggConfig(name="vgg", layers=[4, "M", 6, 8, "M"], dropout=0.0)
RESNET = ResNetConfig(name="resnet", blocks=[1, 1, 1, 1])
DENSENET = DenseNetConfig(name="densenet", growth_rate=4, blocks=[2, 2], features=6, dropout=0.0)
LSTM = RecurrentConfig(name="lstm", hidden=6, layers=1, dropout=0.0)
GRU = RecurrentConfig(name="gru", hidden=6, layers=2, dropout=0.0)
TRANSFORMER = TransformerConfig(name="transformer", patch=4, dim=8, heads=2, layers=1, dropout=0.0)
WAVENET = WaveNetConfig(name="wavenet", stride=2, channels=4, layers=3, dropout=0.0)
FAMILIES = [mlp(16), convnet([4], [8]), VGG, RESNET, DENSENET, LSTM, GRU, TRANSFORMER, WAVENET]
