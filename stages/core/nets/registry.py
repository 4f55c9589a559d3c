"""Build the network that a recipe names.

To add a network, add its config to config.py, its module to this package and a line to `NETWORKS`.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stages.core.examples.spec import Spec
from stages.core.files.errors import UserError
from stages.core.nets import config
from stages.core.nets.convnet import convnet
from stages.core.nets.densenet import densenet
from stages.core.nets.mlp import mlp
from stages.core.nets.normalization import Normalization
from stages.core.nets.recurrent import Recurrent
from stages.core.nets.resnet import resnet
from stages.core.nets.transformer import Transformer
from stages.core.nets.vgg import vgg
from stages.core.nets.wavenet import WaveNet

MAX_WEIGHTS = 250_000_000  # In an ONNX file they take 1 GB, which is the most that OnnxModel reads.

# Each takes its config, the shape of an input (C, H, W) and the number of classes, and maps float32 [N, C, H, W] to
# logits [N, K].
NETWORKS: dict[type[Any], Callable[[Any, tuple[int, ...], int], nn.Module]] = {
    config.MlpConfig: mlp,
    config.ConvNetConfig: convnet,
    config.VggConfig: vgg,
    config.ResNetConfig: resnet,
    config.DenseNetConfig: densenet,
    config.RecurrentConfig: Recurrent,
    config.TransformerConfig: Transformer,
    config.WaveNetConfig: WaveNet,
}


def build_model(settings: config.NetConfig, spec: Spec) -> nn.Sequential:
    """Return a new model for raw inputs [N, *spec.shape], initialized from torch's global generator.

    It maps them to logits float32 [N, K]. Raises `UserError` if the network does not take such inputs or is too
    large.
    """
    make, shape, num_classes = NETWORKS[type(settings)], spec.shape, len(spec.classes)
    try:
        with torch.device("meta"):  # This allocates no memory yet.
            weights = sum(weight.numel() for weight in make(settings, shape, num_classes).parameters())
        if weights > MAX_WEIGHTS:
            raise UserError(f"network '{settings.name}' has {weights:,} weights, allowed: at most {MAX_WEIGHTS:,}")
        network = make(settings, shape, num_classes)
        model = nn.Sequential(OrderedDict(normalization=Normalization(spec), network=network))
        with torch.no_grad():
            model.eval()(torch.zeros((1, *shape)))
    except RuntimeError as error:
        size = "x".join(map(str, shape[1:]))
        raise UserError(f"network '{settings.name}' does not take images of {size}: {error}") from None
    return model.train()
