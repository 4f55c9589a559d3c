"""Networks that recipes name. Each maps images float32 [N, C, H, W] to logits [N, K].

Shape suffixes: N images, C planes, H x W pixels, T steps of a sequence, D features, K classes.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core import params
from stages.core.errors import UserError

MAX_WEIGHTS = 250_000_000  # in an ONNX file they take 1 GB, which is what onnx_model.py allows


def build_model(config: params.Model, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A fresh network for images of `image_shape` (C, H, W), initialized from torch's global generator.

    Raises `UserError` where such a network does not take such images, or is too large.
    """
    height, width = image_shape[1:]
    try:
        with torch.device("meta"):  # takes no memory yet
            weights = sum(weight.numel() for weight in fresh(config, image_shape, num_classes).parameters())
        if weights > MAX_WEIGHTS:
            raise UserError(f"a {config.name} like this has {weights:,} weights, allowed are {MAX_WEIGHTS:,}")
        model = fresh(config, image_shape, num_classes)
        output_shape(model, image_shape)
    except RuntimeError as error:
        raise UserError(f"a {config.name} like this does not take images of {height}x{width}: {error}") from None
    return model.train()


def fresh(  # noqa: PLR0911  # one for each network
    config: params.Model, image_shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    planes, height, width = image_shape
    match config:
        case params.Mlp(hidden=hidden, dropout=dropout):
            return mlp([planes * height * width, *hidden, num_classes], dropout)
        case params.ConvNet():
            return convnet(config, image_shape, num_classes)
        case params.Vgg():
            return vgg(config, planes, num_classes)
        case params.ResNet():
            return resnet(config, planes, num_classes)
        case params.DenseNet():
            return densenet(config, planes, num_classes)
        case params.Recurrent():
            return Recurrent(config, planes * width, num_classes)
        case params.Transformer():
            return Transformer(config, image_shape, num_classes)
        case params.WaveNet():
            return WaveNet(config, image_shape, num_classes)


def output_shape(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Of one such image's outputs; raises `RuntimeError` where the model does not take it."""
    with torch.no_grad():
        outputs_N: Tensor = model.eval()(torch.zeros((1, *image_shape)))
    return outputs_N.shape[1:]


def mlp(widths: list[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of the given widths, after each but the last a ReLU and dropout."""
    layers: list[nn.Module] = [nn.Flatten()]
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


def convnet(config: params.ConvNet, image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Blocks of convolutions (5x5 the first, then 3x3), each with batch norm and ReLU; then one linear layer.

    They are unpadded, as those of LeNet-5 (LeCun et al. 1998, doi 10.1109/5.726791). Each block but the last ends in a
    max-pool by 2; with `stem: stride` the first convolution has stride 2 instead. With `head: max` the last block ends
    in the maximum over all places.
    """
    layers: list[nn.Module] = []
    planes = image_shape[0]
    for block, widths in enumerate(config.channels):
        last = block == len(config.channels) - 1
        for index, fan_out in enumerate(widths):
            size, stride = (3, 1) if layers else (5, 1 if config.stem == "pool" else 2)
            layers.append(nn.Conv2d(planes, fan_out, size, stride, bias=False))
            if index == len(widths) - 1:  # before the norm, which then has a quarter of the pixels to work on
                if last and config.head == "max":
                    _, height, width = output_shape(nn.Sequential(*layers), image_shape)
                    layers.append(nn.MaxPool2d((height, width)))
                elif not last and (block or config.stem == "pool"):
                    layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(fan_out), nn.ReLU()]
            planes = fan_out
    trunk = nn.Sequential(*layers, nn.Flatten())
    (fan_in,) = output_shape(trunk, image_shape)
    return trunk.extend([nn.Dropout(config.dropout), nn.Linear(fan_in, num_classes)])


def vgg(config: params.Vgg, planes: int, num_classes: int) -> nn.Module:
    """Simonyan & Zisserman 2014, arXiv 1409.1556: torchvision's, its classifier a mean and one linear layer."""
    from torchvision.models.vgg import VGG, make_layers  # noqa: PLC0415  # seconds that only its users should wait

    features = make_layers(list(config.layers), batch_norm=True)
    features[0] = nn.Conv2d(planes, features[0].out_channels, 3, padding=1)
    with torch.device("meta"):  # its classifier of 120 million weights is replaced
        network = VGG(features, num_classes, init_weights=False)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    *_, fan_in = (width for width in config.layers if isinstance(width, int))
    network.classifier = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(fan_in, num_classes))
    return network


def resnet(config: params.ResNet, planes: int, num_classes: int) -> nn.Module:
    """He et al. 2015, arXiv 1512.03385: torchvision's with basic blocks; its stem of stride 4 is a 3x3 of stride 2."""
    from torchvision.models.resnet import BasicBlock, ResNet  # noqa: PLC0415

    network = ResNet(BasicBlock, config.blocks, num_classes)
    network.conv1 = nn.Conv2d(planes, network.conv1.out_channels, 3, stride=2, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def densenet(config: params.DenseNet, planes: int, num_classes: int) -> nn.Module:
    """Huang et al. 2016, arXiv 1608.06993: torchvision's; its 7x7 stem of stride 2 is a 3x3 of stride 1."""
    from torchvision.models.densenet import DenseNet  # noqa: PLC0415

    network = DenseNet(
        config.growth_rate, config.blocks, config.features, drop_rate=config.dropout, num_classes=num_classes
    )
    network.features.conv0 = nn.Conv2d(planes, config.features, 3, padding=1, bias=False)
    return network


class Recurrent(nn.Module):
    """An LSTM or GRU that reads an image row by row; a linear layer on its last output."""

    def __init__(self, config: params.Recurrent, row: int, num_classes: int) -> None:
        super().__init__()
        kind = nn.LSTM if config.name == "lstm" else nn.GRU
        between = config.dropout if config.layers > 1 else 0.0
        self.rnn = kind(row, config.hidden, config.layers, batch_first=True, dropout=between)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.hidden, num_classes))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        outputs_NTD, _ = self.rnn(images_NCHW.transpose(1, 2).flatten(2))
        return self.head(outputs_NTD[:, -1])


class Transformer(nn.Module):
    """An encoder over square patches, with a class token in front as BERT has it (Devlin et al. 2018, arXiv 1810.04805;
    for images Dosovitskiy et al. 2020, arXiv 2010.11929)."""

    def __init__(self, config: params.Transformer, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        planes, height, width = image_shape
        if height % config.patch or width % config.patch:
            raise UserError(f"patches of {config.patch}x{config.patch} do not divide images of {height}x{width}")
        steps = 1 + height // config.patch * (width // config.patch)
        self.embed = nn.Conv2d(planes, config.dim, config.patch, stride=config.patch)
        self.token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, steps, config.dim))
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, 4 * config.dim, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(config.dim), enable_nested_tensor=False)
        self.head = nn.Linear(config.dim, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        patches_NTD = self.embed(images_NCHW).flatten(2).transpose(1, 2)
        sequence_NTD = torch.cat([self.token.expand(patches_NTD.shape[0], -1, -1), patches_NTD], 1) + self.positions
        return self.head(self.encoder(sequence_NTD)[:, 0])


class WaveNet(nn.Module):
    """Dilated causal convolutions over the pixels, row after row (van den Oord et al. 2016, arXiv 1609.03499).

    `stride` pixels make a step. Dilations 1, 2, 4, ... give the last of `layers` a view of 2**layers steps back; the
    skip outputs are summed and averaged over all steps.
    """

    def __init__(self, config: params.WaveNet, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        planes, height, width = image_shape
        if height * width % config.stride:
            raise UserError(f"steps of {config.stride} pixels do not divide the pixels of images of {height}x{width}")
        channels = config.channels
        self.embed = nn.Conv1d(planes, channels, config.stride, stride=config.stride)
        self.dilations = [2**layer for layer in range(config.layers)]
        self.dilated = nn.ModuleList(nn.Conv1d(channels, 2 * channels, 2, dilation=step) for step in self.dilations)
        self.mix = nn.ModuleList(nn.Conv1d(channels, 2 * channels, 1) for _ in range(config.layers))
        self.head = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, num_classes))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        signal_NDT = self.embed(images_NCHW.flatten(2))
        skips_NDT = torch.zeros_like(signal_NDT)
        for dilation, dilated, mix in zip(self.dilations, self.dilated, self.mix, strict=True):
            past_NDT = F.pad(signal_NDT, (dilation, 0))
            filter_NDT, gate_NDT = dilated(past_NDT).chunk(2, dim=1)
            residual_NDT, skip_NDT = mix(filter_NDT.tanh() * gate_NDT.sigmoid()).chunk(2, dim=1)
            signal_NDT, skips_NDT = signal_NDT + residual_NDT, skips_NDT + skip_NDT
        return self.head(self.dropout(skips_NDT.relu().mean(2)))
