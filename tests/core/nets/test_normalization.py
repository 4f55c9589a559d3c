"""Every model takes raw values; its first layer normalizes them, exactly as the spec says."""

import pytest
import torch

from stages.core.nets.normalization import Normalization
from stages.core.nets.registry import build_model
from tests.core.nets.small_networks import make_spec, mlp

RAW = torch.arange(256, dtype=torch.uint8)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.1307, 0.3081), (0.0, 1.0)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
def test_raw_values_of_any_type_are_normalized_as_the_spec_says(mean: float, std: float, dtype: torch.dtype) -> None:
    found = Normalization(make_spec(mean=mean, std=std))(RAW.to(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.flatten().double(), (RAW.double() / 255 - mean) / std, rtol=1e-6, atol=1e-6)


def test_each_plane_has_its_own_scale() -> None:
    spec = make_spec((3, 1, 1)).model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (0.5, 1.0, 2.0)})
    found = Normalization(spec)(torch.full((2, 3, 1, 1), 255, dtype=torch.uint8))
    expected = torch.tensor([0.9 / 0.5, 0.8, 0.7 / 2]).view(1, 3, 1, 1).expand(2, 3, 1, 1)
    torch.testing.assert_close(found, expected)


def test_the_output_is_float32_within_autocast() -> None:
    normalization = Normalization(make_spec())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(normalization(RAW), normalization(RAW))
        assert normalization(RAW).dtype == torch.float32


def test_it_is_the_first_layer_and_has_no_weights() -> None:
    spec = make_spec(mean=0.1, std=0.2)
    model = build_model(mlp(8), spec).eval()
    assert list(dict(model.named_children())) == ["normalization", "network"]
    images = RAW[:, None, None, None].expand(256, *spec.shape)
    assert torch.equal(model(images), model.get_submodule("network")(Normalization(spec)(images)))
    assert all(name.startswith("network.") for name in model.state_dict())
