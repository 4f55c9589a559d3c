import pytest
import torch
from torch import nn

from stages.core import params
from stages.core.errors import UserError
from stages.core.models import build_model


def mlp(*hidden: int) -> params.Mlp:
    return params.Mlp(name="mlp", hidden=list(hidden))


def convnet(*channels: int) -> params.ConvNet:
    return params.ConvNet(name="convnet", channels=list(channels))


def count_parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("config", "shape", "classes", "count"),
    [
        (mlp(128, 64), (1, 28, 28), 10, 109_386),
        (mlp(), (1, 28, 28), 10, 784 * 10 + 10),
        (mlp(7), (3, 4, 5), 2, 60 * 7 + 7 + 7 * 2 + 2),
        # by block: the kernel's weights, and weight and bias of the norm; at the end 8 channels of 7x7
        (convnet(4, 8), (1, 28, 28), 10, (25 * 4 + 2 * 4) + (9 * 4 * 8 + 2 * 8) + (8 * 7 * 7 * 10 + 10)),
        (convnet(24, 48, 96), (1, 28, 28), 10, 61_426),
    ],
)
def test_parameter_counts(
    config: params.Mlp | params.ConvNet, shape: tuple[int, int, int], classes: int, count: int
) -> None:
    assert count_parameters(build_model(config, shape, classes)) == count


def test_a_relu_after_each_linear_layer_but_the_last() -> None:
    names = [type(layer).__name__ for layer in build_model(mlp(8, 4), (1, 28, 28), 10)]
    assert names == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]


@pytest.mark.parametrize("config", [mlp(16), mlp(), convnet(4), convnet(4, 8, 12, 16)], ids=str)
@pytest.mark.parametrize(
    ("shape", "classes"), [((1, 28, 28), 10), ((1, 17, 40), 3), ((1, 16, 16), 2), ((3, 32, 32), 256)]
)
def test_images_become_logits(config: params.Mlp | params.ConvNet, shape: tuple[int, int, int], classes: int) -> None:
    model = build_model(config, shape, classes).eval()
    images = torch.randn((5, *shape), generator=torch.Generator().manual_seed(1))
    logits = model(images)
    assert logits.shape == (5, classes)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    # each image by itself
    torch.testing.assert_close(model(images[2:3]), logits[2:3], rtol=1e-4, atol=1e-5)


def test_the_global_generator_initializes() -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(torch.cat([weight.flatten() for weight in build_model(convnet(4), (1, 8, 8), 10).parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("height", "width"), [(7, 28), (28, 7), (1, 1)])
def test_images_too_small_for_a_convnet_are_refused(height: int, width: int) -> None:
    with pytest.raises(UserError, match=f"^a convnet of 3 blocks needs images of 8x8, found {height}x{width}$"):
        build_model(convnet(2, 2, 2), (1, height, width), 10)


def test_the_smallest_images_for_a_convnet() -> None:
    model = build_model(convnet(2, 2, 2), (1, 8, 8), 10).eval()
    assert model(torch.zeros((2, 1, 8, 8))).shape == (2, 10)
