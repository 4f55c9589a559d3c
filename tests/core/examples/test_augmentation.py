"""Test that each change does what its name says, to each image by amounts of its own."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.examples.augmentation import augment
from stages.core.examples.config import Augmentation

OFF = {"shift": 0, "rotation": 0.0, "scale": 0.0, "shear": 0.0, "elastic": 0.0}
EACH = [{"shift": 2}, {"rotation": 30.0}, {"scale": 0.3}, {"shear": 20.0}, {"elastic": 1.5}]
ALL: dict[str, Any] = {"shift": 2, "rotation": 15.0, "scale": 0.2, "shear": 10.0, "elastic": 1.0}


def change(images: Tensor, seed: int = 1, rank: int = 0, world_size: int = 1, **amounts: Any) -> Tensor:
    config = Augmentation.model_validate(OFF | amounts)
    return augment(images, config, torch.Generator().manual_seed(seed), rank, world_size)


def make_images(count: int = 50, height: int = 20, width: int = 20) -> Tensor:
    return torch.rand((count, 1, height, width), generator=torch.Generator().manual_seed(1))


def test_all_off_leaves_the_images() -> None:
    images = make_images()
    assert change(images) is images


@pytest.mark.parametrize("pixels", [1, 2])
def test_shift_moves_a_bright_pixel(pixels: int) -> None:
    images = torch.zeros((600, 1, 9, 8))
    images[:, 0, 4, 3] = 1
    moved = change(images, shift=pixels)
    places = (moved[:, 0] > 0.5).nonzero()
    assert places[:, 0].tolist() == list(range(600))  # one bright pixel in each image
    torch.testing.assert_close(moved.sum(), torch.tensor(600.0))  # and as bright as it was
    torch.testing.assert_close(moved, (moved > 0.5).float(), atol=1e-4, rtol=0)  # by whole pixels
    offsets = Counter((row - 4, column - 3) for _, row, column in places.tolist())
    allowed = range(-pixels, pixels + 1)
    assert set(offsets) == {(down, right) for down in allowed for right in allowed}
    assert min(offsets.values()) >= 0.4 * 600 / len(offsets)  # no offset is rare


def test_shift_fills_the_gap_with_the_border() -> None:
    images = torch.randn((100, 1, 6, 7), generator=torch.Generator().manual_seed(1))
    offsets = set()
    for before, after in zip(images[:, 0], change(images, shift=2)[:, 0], strict=True):
        matches = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.allclose(
                after, before[(torch.arange(6) - down).clamp(0, 5)][:, (torch.arange(7) - right).clamp(0, 6)], atol=1e-4
            )
        ]
        assert len(matches) == 1
        offsets.update(matches)
    assert len(offsets) == 25


def centres(images: Tensor) -> Tensor:
    """Return how far all that is bright lies down and right of the image's centre, [N, 2]."""
    height, width = images.shape[2:]
    rows, columns = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    mass = images.sum((1, 2, 3))
    return torch.stack([(images * rows[:, None]).sum((1, 2, 3)), (images * columns).sum((1, 2, 3))], 1) / mass[:, None]


@pytest.mark.parametrize(("height", "width"), [(41, 41), (41, 61)])
def test_rotation_turns_by_up_to_the_degrees(height: int, width: int) -> None:
    images = torch.zeros((400, 1, height, width))
    images[:, 0, height // 2 - 1 : height // 2 + 2, width // 2 + 13 : width // 2 + 16] = 1
    down, right = centres(change(images, rotation=30.0)).T
    degrees = torch.rad2deg(torch.atan2(down, right))
    assert degrees.abs().max() <= 30.5
    assert degrees.min() < -25
    assert degrees.max() > 25
    torch.testing.assert_close(torch.hypot(down, right), torch.full((400,), 14.0), atol=0.3, rtol=0)


def test_scale_keeps_direction_and_changes_distance() -> None:
    images = torch.zeros((400, 1, 41, 41))
    images[:, 0, 19:22, 28:31] = 1
    down, right = centres(change(images, scale=0.25)).T
    assert down.abs().max() < 0.1
    assert 0.74 * 9 < right.min() < 0.85 * 9
    assert 1.15 * 9 < right.max() < 1.26 * 9


def test_shear_moves_along_the_rows() -> None:
    images = torch.zeros((400, 1, 41, 41))
    images[:, 0, 29:32, 19:22] = 1  # 10 below the centre
    down, right = centres(change(images, shear=20.0)).T
    assert (down - 10).abs().max() < 0.2
    assert 3 < right.max() < 10 * 0.364 + 0.2  # the tangent of 20 degrees


@pytest.mark.parametrize("width", [41, 21])
def test_elastic_bends_by_pixels(width: int) -> None:
    images, middle = torch.zeros((400, 1, 41, width)), width // 2  # where a knot lies
    images[:, 0, 19:22, middle - 1 : middle + 2] = 1
    moved = centres(change(images, elastic=2.0))
    assert moved.std(0).tolist() == pytest.approx([2.0, 2.0], rel=0.3)
    assert moved.mean(0).abs().max() < 0.4


@pytest.mark.parametrize("amounts", EACH, ids=lambda amounts: next(iter(amounts)))
def test_no_pixel_leaves_the_range(amounts: dict[str, Any]) -> None:
    images = make_images() - 0.5
    changed = change(images, **amounts)
    assert changed.shape == images.shape
    assert not torch.equal(changed, images)
    assert images.min() - 1e-5 <= changed.min()
    assert changed.max() <= images.max() + 1e-5


@pytest.mark.parametrize("amounts", [*EACH, ALL])
def test_the_generator_decides(amounts: dict[str, Any]) -> None:
    images = make_images()
    before = images.clone()
    first, again, other = (change(images, seed, **amounts) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    alike = images[:1].expand(50, -1, -1, -1)
    assert len({tuple(image.flatten().tolist()) for image in change(alike, **amounts)}) > 15  # each by its own amounts


def test_slices_of_a_batch_get_what_they_get_in_the_whole() -> None:
    images = make_images(60)
    slices = [change(part, rank=rank, world_size=3, **ALL) for rank, part in enumerate(images.split(20))]
    torch.testing.assert_close(torch.cat(slices), change(images, **ALL))


@pytest.mark.parametrize("amounts", [*EACH, ALL])
def test_bytes_become_the_same_floats(amounts: dict[str, Any]) -> None:
    """Raw images are changed without being scaled, and stay within 0..255."""
    images = (255 * make_images()).byte()
    changed = change(images, **amounts)
    assert changed.dtype == torch.float32
    torch.testing.assert_close(changed, change(images.float(), **amounts), rtol=0, atol=0)
    torch.testing.assert_close(changed / 255, change(images.float() / 255, **amounts), rtol=0, atol=1e-5)
    assert changed.min() >= -1e-3
    assert changed.max() <= 255 + 1e-3
    assert changed.max() > 200
