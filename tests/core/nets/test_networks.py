import pytest
import torch
from stages.core.models import WaveNet  # FIXME
from torch import Tensor, nn
from torchvision.models import VGG, DenseNet, ResNet

from stages.core import params
from stages.core.files.errors import UserError
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
from stages.core.nets.registry import build_model
from tests.conftest import PROJECT

RECIPES = params.load_params(PROJECT / "params.yaml").recipes


def mlp(*hidden: int, dropout: float = 0.0) -> MlpConfig:
    return MlpConfig(name="mlp", hidden=list(hidden), dropout=dropout)


def convnet(*channels: list[int], stem: str = "pool", head: str = "flatten", dropout: float = 0.0) -> ConvNetConfig:
    return ConvNetConfig.model_validate(
        {"name": "convnet", "channels": list(channels), "stem": stem, "head": head, "dropout": dropout}
    )


VGG_ = VggConfig(name="vgg", layers=[4, "M", 6, 8, "M"], dropout=0.0)
RESNET = ResNetConfig(name="resnet", blocks=[1, 1, 1, 1])
DENSENET = DenseNetConfig(name="densenet", growth_rate=4, blocks=[2, 2], features=6, dropout=0.0)
LSTM = RecurrentConfig(name="lstm", hidden=6, layers=1, dropout=0.0)
GRU = RecurrentConfig(name="gru", hidden=6, layers=2, dropout=0.0)
TRANSFORMER = TransformerConfig(name="transformer", patch=4, dim=8, heads=2, layers=1, dropout=0.0)
WAVENET = WaveNetConfig(name="wavenet", stride=2, channels=4, layers=3, dropout=0.0)
FAMILIES = [mlp(16), convnet([4], [8]), VGG_, RESNET, DENSENET, LSTM, GRU, TRANSFORMER, WAVENET]


def count_parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("config", "shape", "classes", "count"),
    [
        (mlp(128, 64), (1, 28, 28), 10, 109_386),
        (mlp(), (1, 28, 28), 10, 784 * 10 + 10),
        (mlp(7), (3, 4, 5), 2, 60 * 7 + 7 + 7 * 2 + 2),
        # by block: the kernel's weights, and weight and bias of the norm; at the end 8 channels of 10x10
        (convnet([4], [8]), (1, 28, 28), 10, (25 * 4 + 2 * 4) + (9 * 4 * 8 + 2 * 8) + (8 * 10 * 10 * 10 + 10)),
        (convnet([24], [48], [96]), (1, 28, 28), 10, 61_426),
        (convnet([4], [8], stem="stride"), (1, 28, 28), 10, 25 * 4 + 2 * 4 + 9 * 4 * 8 + 2 * 8 + 8 * 10 * 10 * 10 + 10),
        (convnet([4], [8], head="max"), (1, 28, 28), 10, (25 * 4 + 2 * 4) + (9 * 4 * 8 + 2 * 8) + (8 * 10 + 10)),
        (convnet([32], [64, 64], [128], head="max"), (1, 28, 28), 10, 131_690),
        # four gates, three gates: from the row, from the state, and two biases
        (LSTM, (1, 28, 28), 10, 4 * 6 * (28 + 6 + 2) + 6 * 10 + 10),
        (GRU, (1, 28, 28), 10, 3 * 6 * (28 + 6 + 2) + 3 * 6 * (6 + 6 + 2) + 6 * 10 + 10),
        # patches, class token and places; attention, two linear layers, two norms; a norm and the head
        (TRANSFORMER, (1, 28, 28), 10,
         (16 * 8 + 8) + 8 + 50 * 8 + (4 * (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 4 * 8) + 2 * 8 + 8 * 10 + 10),
        (WAVENET, (1, 28, 28), 10, (2 * 4 + 4) + 3 * ((2 * 4 * 8 + 8) + (4 * 8 + 8)) + (4 * 4 + 4) + (4 * 10 + 10)),
    ],
)  # fmt: skip
def test_parameter_counts(config: params.Model, shape: tuple[int, int, int], classes: int, count: int) -> None:
    assert count_parameters(build_model(config, shape, classes)) == count


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_network(name: str) -> None:
    model = build_model(RECIPES[name].model, (1, 28, 28), 10)
    assert model.training
    assert model(torch.randn((2, 1, 28, 28))).shape == (2, 10)


@pytest.mark.parametrize(
    "config", [*FAMILIES, convnet([4, 4], [8], stem="stride", head="max")], ids=lambda config: config.name
)
@pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 10), ((1, 16, 40), 3), ((3, 32, 32), 256)])
def test_images_become_logits(config: params.Model, shape: tuple[int, int, int], classes: int) -> None:
    model = build_model(config, shape, classes).eval()
    images = torch.randn((5, *shape), generator=torch.Generator().manual_seed(1))
    logits = model(images)
    assert logits.shape == (5, classes)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    # each image by itself
    torch.testing.assert_close(model(images[2:3]), logits[2:3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("config", "kind"), [(VGG_, VGG), (RESNET, ResNet), (DENSENET, DenseNet)])
def test_torchvisions_own(config: params.Model, kind: type[nn.Module]) -> None:
    assert isinstance(build_model(config, (1, 28, 28), 10), kind)


def test_a_relu_after_each_linear_layer_but_the_last() -> None:
    names = [type(layer).__name__ for layer in build_model(mlp(8, 4), (1, 28, 28), 10).children()]
    assert names == ["Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]


def test_dropout_works_in_training_alone() -> None:
    model, images = build_model(mlp(64, dropout=0.5), (1, 4, 4), 2), torch.ones((1, 1, 4, 4))
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_a_wavenet_hears_the_past_alone() -> None:
    model = build_model(WAVENET, (1, 1, 20), 2).eval()
    assert isinstance(model, WaveNet)
    heard: list[Tensor] = []
    model.mix[-1].register_forward_hook(lambda *call: heard.append(call[-1]))
    images = torch.randn((1, 1, 1, 20), generator=torch.Generator().manual_seed(1)).requires_grad_()
    model(images)
    for step in (0, 7, 9):
        (gradient,) = torch.autograd.grad(heard[0][0, :, step].sum(), images, retain_graph=True)
        reached = gradient.flatten().nonzero().flatten().tolist()
        assert reached == list(range(2 * max(0, step - 7), 2 * step + 2))  # 2**3 steps of 2 pixels


def test_the_global_generator_initializes() -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(torch.cat([weight.flatten() for weight in build_model(VGG_, (1, 8, 8), 10).parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("config", "height", "width"),
    [(convnet([2], [2], [2]), 19, 28), (convnet([2], [2], [2]), 28, 19), (VGG_, 3, 3), (DENSENET, 1, 1)],
)
def test_images_too_small_are_refused(config: params.Model, height: int, width: int) -> None:
    with pytest.raises(UserError, match=f"^a {config.name} like this does not take images of {height}x{width}: "):
        build_model(config, (1, height, width), 10)


def test_a_network_too_large_for_an_onnx_file_is_refused() -> None:
    large = MlpConfig(name="mlp", hidden=[8192] * 6, dropout=0.0)
    with pytest.raises(UserError, match=r"^a mlp like this has 342,0\d\d,\d+ weights, allowed are"):
        build_model(large, (1, 28, 28), 10)


def test_patches_that_do_not_divide_the_image_are_refused() -> None:
    with pytest.raises(UserError, match=r"^patches of 4x4 do not divide images of 28x30$"):
        build_model(TRANSFORMER, (1, 28, 30), 10)


def test_steps_that_do_not_divide_the_image_are_refused() -> None:
    with pytest.raises(UserError, match=r"^steps of 2 pixels do not divide the pixels of images of 5x7$"):
        build_model(WAVENET, (1, 5, 7), 10)


def test_the_smallest_images_for_a_convnet() -> None:
    model = build_model(convnet([2], [2], [2]), (1, 20, 20), 10).eval()
    assert model(torch.zeros((2, 1, 20, 20))).shape == (2, 10)
