"""Test that mixed images consist of the shares by which their labels count."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.examples.augmentation import slots
from stages.core.examples.config import Augmentation
from stages.core.examples.mixing import draw_mixes, is_mixing, mix

AMOUNTS = [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}]


def draw(seed: int = 1, steps: int = 40, **on: Any) -> Tensor:
    """Return the mixes of batches of 50 images of three planes of 12x9."""
    config = Augmentation.model_validate(dict.fromkeys(Augmentation.model_fields, 0) | on)
    assert is_mixing(config)
    return draw_mixes(config, seed, steps, 50, (3, 12, 9))


def ramp(count: int, *shape: int) -> Tensor:
    """Return images of one value each: 0, 1, 2, ..."""
    return torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, *shape)


@pytest.mark.parametrize("amounts", AMOUNTS)
def test_shares_of_the_pixels_are_those_of_the_labels(amounts: dict[str, Any]) -> None:
    """Where each image is 1 above the one before it, a mixed image lacks the share of the other one on average."""
    for mixes in draw(steps=20, **amounts):
        mixed, own = mix(ramp(51, 3, 12, 9), mixes)
        torch.testing.assert_close(own, mixed.mean((1, 2, 3)) - torch.arange(50), atol=1e-4, rtol=0)
        assert own.min() >= 0
        assert own.max() <= 1


def test_mixup_blends_whole_images() -> None:
    [mixes] = draw(steps=1, mixup=0.4)
    images = torch.rand((51, 3, 12, 9), generator=torch.Generator().manual_seed(1))
    mixed, own = mix(images, mixes)
    own = own.view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed, own * images[1:] + (1 - own) * images[:-1])


def test_cutmix_pastes_a_rectangle_of_unchanged_pixels() -> None:
    [mixes] = draw(steps=1, cutmix=1.0)
    images = torch.randint(256, (51, 3, 12, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mixed, own = mix(images, mixes)
    for index, (image, share) in enumerate(zip(mixed, own.tolist(), strict=True)):
        is_other = (image != images[index + 1]).any(0)
        assert torch.equal(image[:, is_other], images[index][:, is_other].float())
        rows, columns = is_other.any(1).sum(), is_other.any(0).sum()
        assert float(rows * columns) == pytest.approx((1 - share) * 108, abs=1e-3)
    assert own.unique().numel() > 20


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_follow_a_beta_distribution(alpha: float) -> None:
    share = draw(steps=200, mixup=alpha)[..., 4]
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_each_batch_draws_one_of_the_two() -> None:
    mixes = draw(mixup=0.4, cutmix=1.0)
    is_whole = (mixes[..., :4] == torch.tensor([0.0, 12.0, 0.0, 9.0])).all(2)
    is_opaque = mixes[..., 4] == 1
    kinds = is_opaque.all(1)
    assert 5 < kinds.sum() < 35
    assert is_whole[~kinds].all()
    assert (~is_opaque[~kinds]).float().mean() > 0.9


def test_the_seed_decides() -> None:
    assert torch.equal(draw(1, cutmix=1.0), draw(1, cutmix=1.0))
    assert not torch.equal(draw(1, cutmix=1.0), draw(2, cutmix=1.0))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_partners_do_not_depend_on_the_number_of_processes(world_size: int) -> None:
    count = 12 // world_size
    parts = [slots(rank, count, 12, torch.device("cpu")) for rank in range(world_size)]
    assert torch.cat([part[1:] for part in parts]).tolist() == list(range(12))
    assert torch.cat([part[:-1] for part in parts]).tolist() == [11, *range(11)]
