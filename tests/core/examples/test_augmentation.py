"""Test that each change does what its name says, to each image by amounts of its own."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.examples.augmentation import augment, crop, slots
from stages.core.examples.config import Augmentation

OFF = dict.fromkeys(Augmentation.model_fields, 0)
EACH = [{"shift": 2}, {"rotation": 30.0}, {"scale": 0.3}, {"shear": 20.0}, {"elastic": 1.5}, {"crop": 0.5},
        {"erase": 0.2}]  # fmt: skip
ALL: dict[str, Any] = {"shift": 2, "rotation": 15.0, "scale": 0.2, "shear": 10.0, "elastic": 1.0, "flip": 0.5,
                       "crop": 0.5, "erase": 0.2}  # fmt: skip
NEW: dict[str, Any] = {"flip": 0.5, "crop": 0.5, "color": 0.4, "erase": 0.2}


def change(images: Tensor, seed: int = 1, rank: int = 0, world_size: int = 1, **amounts: Any) -> Tensor:
    config = Augmentation.model_validate(OFF | amounts)
    return augment(images, config, torch.Generator().manual_seed(seed), rank, world_size)


def make_colors(count: int = 50, planes: int = 3, height: int = 12, width: int = 9) -> Tensor:
    """Return raw images of random pixels."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, planes, height, width), dtype=torch.uint8, generator=generator)


def make_images(count: int = 50, height: int = 20, width: int = 20) -> Tensor:
    return torch.rand((count, 1, height, width), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("amounts", [{}, {"crop": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_all_off_leaves_the_images(amounts: dict[str, Any]) -> None:
    images = make_images()
    assert change(images, **amounts) is images


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


@pytest.mark.parametrize("amounts", [ALL, NEW])
@pytest.mark.parametrize("planes", [1, 3])
def test_slices_of_a_batch_get_what_they_get_in_the_whole(amounts: dict[str, Any], planes: int) -> None:
    images = make_colors(60, planes)
    slices = [change(part, rank=rank, world_size=3, **amounts) for rank, part in enumerate(images.split(20))]
    torch.testing.assert_close(torch.cat(slices), change(images, **amounts))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_neighbour_of_a_slice_gets_what_it_gets_in_the_whole(world_size: int) -> None:
    images, config, count = make_colors(60), Augmentation.model_validate(OFF | ALL | NEW), 60 // world_size
    whole = change(images, **(ALL | NEW))
    for rank in range(world_size):
        mine, generator = slots(rank, count, 60, images.device), torch.Generator().manual_seed(1)
        changed = augment(images[mine], config, generator, rank, world_size, neighbour=True)
        torch.testing.assert_close(changed, whole[mine])


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


def test_flip_mirrors_exactly_as_often_as_it_says() -> None:
    images = make_colors(1000)
    changed = change(images, flip=0.3)
    mirrored = (changed == images.flip(3)).flatten(1).all(1)
    assert ((changed == images).flatten(1).all(1) ^ mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(change(images, flip=1.0), images.flip(3).float())


def test_new_changes_leave_the_draws_of_the_geometric_ones() -> None:
    images = make_images()
    geometric: dict[str, Any] = {"shift": 2, "rotation": 15.0, "elastic": 1.0}
    plain, flipped = change(images, **geometric), change(images, **geometric, flip=1.0)
    assert torch.equal(flipped, plain.flip(3))


def draw_crops(smallest: float, count: int = 4000) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return crop(smallest, lambda: 2 * torch.rand(count, generator=generator) - 1)


@pytest.mark.parametrize("smallest", [0.1, 0.5])
def test_crops_have_areas_and_shapes_within_their_bounds(smallest: float) -> None:
    matrices = draw_crops(smallest)
    wide, high, right, down = matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, 0, 2], matrices[:, 1, 2]
    assert (right.abs() + wide <= 1 + 1e-6).all()  # within the image
    assert (down.abs() + high <= 1 + 1e-6).all()
    assert 0.75 - 1e-5 <= (wide / high).min() < 0.78
    assert 1.29 < (wide / high).max() <= 4 / 3 + 1e-5
    is_whole = (wide < 1) & (high < 1)
    area = (wide * high)[is_whole]
    assert smallest - 1e-5 <= area.min() < smallest + 0.02
    assert area.max() > 0.9


def test_a_crop_is_enlarged_to_the_whole_image() -> None:
    """Of an image whose pixels are their places, a crop has the places of a rectangle."""
    height, width = 16, 24
    rows, columns = torch.arange(height).float(), torch.arange(width).float()
    places = torch.stack([rows[:, None].expand(-1, width), columns.expand(height, -1)])
    changed = change(places.expand(300, -1, -1, -1), crop=0.25)
    assert (changed[:, 0] - changed[:, 0, :, :1]).abs().max() < 1e-3  # A row of it lies in a row of the image.
    assert (changed[:, 1] - changed[:, 1, :1]).abs().max() < 1e-3
    shares = (changed[:, 0, 9, 0] - changed[:, 0, 6, 0]) / 3, (changed[:, 1, 0, 13] - changed[:, 1, 0, 10]) / 3
    area = shares[0] * shares[1]
    assert 0.24 < area.min() < 0.35
    assert 0.9 < area.max() < 1.01


def test_color_changes_brightness_contrast_and_saturation_by_up_to_its_strength() -> None:
    grey = torch.full((600, 1, 6, 5), 100.0)  # Only its brightness changes.
    changed = change(grey, color=0.4)
    assert (changed - changed[:, :, :1, :1]).abs().max() < 1e-3
    assert 60 - 1e-3 <= changed.min() < 62
    assert 138 < changed.max() <= 140 + 1e-3

    two = torch.full((600, 1, 6, 4), 80.0)  # Contrast is the relation of difference and mean.
    two[..., ::2] = 120.0
    changed = change(two, color=0.4)
    contrast = (changed[:, 0, 0, 0] - changed[:, 0, 0, 1]) / changed.mean((1, 2, 3)) / 0.4
    assert 0.6 - 1e-3 <= contrast.min() < 0.62
    assert 1.38 < contrast.max() <= 1.4 + 1e-3

    tinted = torch.tensor([120.0, 100.0, 80.0]).view(1, 3, 1, 1).expand(600, -1, 6, 5)  # of no contrast
    changed = change(tinted, color=0.4)[:, :, 0, 0]
    luma = changed @ torch.tensor([0.299, 0.587, 0.114])
    saturation = (changed[:, 0] - changed[:, 2]) / luma / (40 / 103.7)
    assert saturation.max() / saturation.min() > 1.7
    assert saturation.min() < 0.75
    assert saturation.max() > 1.25


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_colors_stay_within_their_range(planes: int) -> None:
    images = make_colors(planes=planes)
    changed = change(images, color=1.0)
    assert changed.shape == images.shape
    assert changed.min() == 0
    assert changed.max() == 255
    assert (
        len({tuple(image.flatten().tolist()) for image in change(images[:1].expand(50, -1, -1, -1), color=0.5)}) == 50
    )


def test_erase_fills_a_square_with_the_mean() -> None:
    images = make_colors(2000, height=20, width=30)
    changed = change(images, erase=0.06)  # a square of 6x6 pixels
    erased = (changed != images).any(1)
    means = images.float().mean((2, 3), keepdim=True).expand_as(changed)
    torch.testing.assert_close(changed, torch.where(erased[:, None], means, images))
    rows, columns = erased.any(2).sum(1), erased.any(1).sum(1)
    assert torch.equal(rows * columns, erased.sum((1, 2)))  # They are rectangles,
    assert rows.max() == columns.max() == 6
    assert rows.min() == columns.min() == 3  # which the border may cut in half,
    assert (erased.sum((1, 2)) == 36).float().mean() > 0.5
    assert erased.any(0).all()  # at any place.


@pytest.mark.parametrize("amounts", [*EACH, ALL, NEW, {"flip": 0.5}, {"color": 0.5}])
def test_colour_images_are_changed_alike_in_all_planes(amounts: dict[str, Any]) -> None:
    """Three equal planes stay equal: all of them are moved by the same amounts, and grey has no colour to change."""
    images = make_colors(planes=1).expand(-1, 3, -1, -1)
    changed = change(images, **amounts)
    torch.testing.assert_close(changed, changed[:, :1].expand_as(changed), atol=1e-3, rtol=1e-4)
