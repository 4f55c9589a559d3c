import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from stages.core.config.params import load_params
from stages.core.files.errors import UserError
from stages.core.nets.config import MlpConfig, NetConfig
from stages.core.nets.registry import build_model
from stages.core.nets.wavenet import WaveNet
from tests.conftest import PROJECT
from tests.core.nets.small_networks import (
    DENSENET,
    FAMILIES,
    GRU,
    LSTM,
    RESNET,
    TRANSFORMER,
    VGG,
    WAVENET,
    convnet,
    make_spec,
    mlp,
)

RECIPES = load_params(PROJECT / "params.yaml").recipes


def make_images(count: int, *shape: int, seed: int = 1) -> Tensor:
    """Return raw images of random pixels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)


def count_parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("config", "shape", "classes", "count"),
    [
        (mlp(128, 64), (1, 28, 28), 10, 109_386),
        (mlp(), (1, 28, 28), 10, 784 * 10 + 10),
        (mlp(7), (3, 4, 5), 2, 60 * 7 + 7 + 7 * 2 + 2),
        # A block has the kernel's weights, and weight and bias of the norm. The last one has 8 channels of 10x10.
        (convnet([4], [8]), (1, 28, 28), 10, (25 * 4 + 2 * 4) + (9 * 4 * 8 + 2 * 8) + (8 * 10 * 10 * 10 + 10)),
        (convnet([24], [48], [96]), (1, 28, 28), 10, 61_426),
        (convnet([4], [8], stem="stride"), (1, 28, 28), 10, 25 * 4 + 2 * 4 + 9 * 4 * 8 + 2 * 8 + 8 * 10 * 10 * 10 + 10),
        (convnet([4], [8], head="max"), (1, 28, 28), 10, (25 * 4 + 2 * 4) + (9 * 4 * 8 + 2 * 8) + (8 * 10 + 10)),
        (convnet([32], [64, 64], [128], head="max"), (1, 28, 28), 10, 131_690),
        # Each of the four or three gates has weights of the row and of the state, and two biases.
        (LSTM, (1, 28, 28), 10, 4 * 6 * (28 + 6 + 2) + 6 * 10 + 10),
        (GRU, (1, 28, 28), 10, 3 * 6 * (28 + 6 + 2) + 3 * 6 * (6 + 6 + 2) + 6 * 10 + 10),
        # First patches, class token and places; then attention, two linear layers and two norms; a norm and the head.
        (TRANSFORMER, (1, 28, 28), 10,
         (16 * 8 + 8) + 8 + 50 * 8 + (4 * (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 4 * 8) + 2 * 8 + 8 * 10 + 10),
        (WAVENET, (1, 28, 28), 10, (2 * 4 + 4) + 3 * ((2 * 4 * 8 + 8) + (4 * 8 + 8)) + (4 * 4 + 4) + (4 * 10 + 10)),
    ],
)  # fmt: skip
def test_parameters_are_counted_by_hand(
    config: NetConfig, shape: tuple[int, int, int], classes: int, count: int
) -> None:
    assert count_parameters(build_model(config, make_spec(shape, classes))) == count


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_network(name: str) -> None:
    model = build_model(RECIPES[name].model, make_spec())
    assert model.training
    assert model(make_images(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    "config", [*FAMILIES, convnet([4, 4], [8], stem="stride", head="max")], ids=lambda config: config.name
)
@pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 10), ((1, 16, 40), 3), ((3, 32, 32), 256)])
def test_images_become_logits(config: NetConfig, shape: tuple[int, int, int], classes: int) -> None:
    model = build_model(config, make_spec(shape, classes)).eval()
    images = make_images(5, *shape)
    logits = model(images)
    assert logits.shape == (5, classes)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    # The answer to an image does not depend on the others of its batch.
    torch.testing.assert_close(model(images[2:3]), logits[2:3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "kind"),
    [(VGG, torchvision.models.VGG), (RESNET, torchvision.models.ResNet), (DENSENET, torchvision.models.DenseNet)],
)
def test_networks_that_torchvision_has_are_its_own(config: NetConfig, kind: type[nn.Module]) -> None:
    assert isinstance(build_model(config, make_spec()).network, kind)


def test_a_relu_after_each_linear_layer_but_the_last() -> None:
    names = [type(layer).__name__ for layer in build_model(mlp(8, 4), make_spec()).get_submodule("network").children()]
    assert names == ["Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]


def test_dropout_works_only_in_training() -> None:
    model, images = build_model(mlp(64, dropout=0.5), make_spec((1, 4, 4), 2)), make_images(1, 1, 4, 4)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_a_wavenet_hears_only_the_past() -> None:
    model = build_model(WAVENET, make_spec((1, 1, 20), 2)).eval()
    assert isinstance(model.network, WaveNet)
    heard: list[Tensor] = []
    model.network.mix[-1].register_forward_hook(lambda *call: heard.append(call[-1]))
    images = make_images(1, 1, 1, 20).float().requires_grad_()
    model(images)
    for step in (0, 7, 9):
        (gradient,) = torch.autograd.grad(heard[0][0, :, step].sum(), images, retain_graph=True)
        reached = gradient.flatten().nonzero().flatten().tolist()
        assert reached == list(range(2 * max(0, step - 7), 2 * step + 2))  # 2**3 steps of 2 pixels


def test_weights_come_from_the_global_generator() -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(torch.cat([weight.flatten() for weight in build_model(VGG, make_spec((1, 8, 8))).parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("config", "field", "smallest"),
    [
        (convnet([2], [2], [2]), "channels", 20),
        (convnet([2], [2], [2], padding="same"), "channels", 4),
        (convnet([2, 2], [2], stem="stride"), "channels", 13),
        (convnet([2], [2, 2], stem="stride", padding="same"), "channels", 1),
        (VGG, "layers", 4),
        (DENSENET, "blocks", 3),
        (DENSENET.model_copy(update={"blocks": [1, 1, 1]}), "blocks", 7),
    ],
)
def test_images_must_be_large_enough(config: NetConfig, field: str, smallest: int) -> None:
    assert build_model(config, make_spec((1, smallest, smallest))).eval()(make_images(2, 1, smallest, smallest)).shape
    for height, width in [(smallest - 1, 28), (28, smallest - 1)] if smallest > 1 else []:
        message = f"network '{config.name}' does not take images of {height}x{width}: with this model.{field}, allowed:"
        with pytest.raises(UserError, match=f"^{message} at least {smallest}x{smallest}$"):
            build_model(config, make_spec((1, height, width)))


def test_a_network_must_fit_into_an_onnx_file() -> None:
    large = MlpConfig(name="mlp", hidden=[8192] * 6, dropout=0.0)
    with pytest.raises(UserError, match=r"^network 'mlp' has 342,0\d\d,\d+ weights, allowed: at most"):
        build_model(large, make_spec())


def test_patches_must_divide_the_image() -> None:
    message = "network 'transformer' does not take images of 28x30: model.patch: found 4, allowed: 1, 2"
    with pytest.raises(UserError, match=f"^{message}$"):
        build_model(TRANSFORMER, make_spec((1, 28, 30)))


def test_steps_must_divide_the_image() -> None:
    message = "network 'wavenet' does not take images of 5x7: model.stride: found 2, allowed: 1, 5, 7, 35"
    with pytest.raises(UserError, match=f"^{message}$"):
        build_model(WAVENET, make_spec((1, 5, 7)))


SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 64, 48), (1, 20, 30), (3, 13, 17)]
DIVIDING = [TRANSFORMER.model_copy(update={"patch": 1, "dim": 4}), WAVENET.model_copy(update={"stride": 1})]
ANY_SIZE = [*(config for config in FAMILIES if config not in (TRANSFORMER, WAVENET)), *DIVIDING]


@pytest.mark.parametrize("config", [*ANY_SIZE, convnet([4], [8], padding="same")], ids=lambda config: config.name)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_images_of_any_shape_are_classified(config: NetConfig, shape: tuple[int, int, int]) -> None:
    logits = build_model(config, make_spec(shape, 4))(make_images(3, *shape))
    assert logits.shape == (3, 4)
    assert logits.isfinite().all()


@pytest.mark.filterwarnings("ignore:The tensor attributes? .*_flat_weights")  # as in stages/export.py
@pytest.mark.parametrize("config", [*ANY_SIZE, convnet([4], [8], padding="same")], ids=lambda config: config.name)
def test_networks_can_be_exported_for_odd_sizes(config: NetConfig) -> None:
    """The trace is the first step of the export; its batch must be dynamic."""
    model, images = build_model(config, make_spec((3, 13, 17), 4)).eval(), make_images(3, 3, 13, 17)
    logits = model(images)
    program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(images), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 13, 17)])
def test_padding_keeps_the_size(shape: tuple[int, int, int]) -> None:
    model = build_model(convnet([4], [8], padding="same"), make_spec(shape)).eval()
    network = model.get_submodule("network")
    assert isinstance(network, nn.Sequential)
    features = network[:-3](torch.zeros((1, *shape)))
    assert features.shape == (1, 8, shape[1] // 2, shape[2] // 2)
