"""Build fully connected networks.

Shape suffixes: N images, K classes.
"""

from itertools import pairwise
from math import prod

from torch import nn

from stages.core.nets.config import MlpConfig


def mlp(config: MlpConfig, shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Return linear layers of the given widths, each but the last followed by a ReLU and dropout."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise([prod(shape), *config.hidden, num_classes]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(config.dropout)]
    return nn.Sequential(*layers[:-2])
