"""Turn IDX files into normalized tensors, split for training, validation and test.

Reads artifacts/raw/DATASET/.
Writes artifacts/normalized/: a TensorDict of memory maps per split and summary.parquet, one row per image;
artifacts/metrics/normalize.json: images and exact duplicates; artifacts/details/normalize.json: the same by split;
artifacts/sums/normalize.sha256.
Fails when a file is no IDX file of bytes, a label is unknown, an image is constant, a split lacks a class, a class's
share of a split is out of bounds, or training and test images differ in shape.
"""

import hashlib
from math import ceil, floor
from pathlib import Path

import polars as pl
import torch
from tensordict import TensorDict
from torch import Tensor

from stages.core import schemas
from stages.core.artifacts import alone, replacing, validate, write_json, write_table
from stages.core.datasets import RAW, normalize_pixels, read_raw
from stages.core.errors import UserError, reported
from stages.core.params import ClassShare, load_params
from stages.core.provenance import made_from
from stages.core.sums import digest, record, verify
from stages.core.tensors import validate_tensors, write_tensors
from stages.core.threads import sharing_cores
from stages.core.timing import timed

NORMALIZED = Path("artifacts/normalized")
METRICS = Path("artifacts/metrics/normalize.json")
DETAILS = Path("artifacts/details/normalize.json")


def stratified_split(labels_N: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the ascending indices of the kept and of the held-out images; `share` of each class is held out.

    Numbers of images are rounded by the largest-remainder method. A class of two or more images is in both parts.
    """
    generator = torch.Generator().manual_seed(seed)
    counts_K, held_out = torch.bincount(labels_N.long()), round(share * len(labels_N))
    exact_K = counts_K.double() * held_out / len(labels_N)
    take_K = exact_K.long()
    missing = held_out - int(take_K.sum())
    take_K[(exact_K - take_K).argsort(descending=True, stable=True)[:missing]] += 1
    take_K = take_K.clamp(min=1).minimum(counts_K - 1).clamp(min=0)
    held = []
    for label, take in enumerate(take_K.tolist()):
        members = (labels_N == label).nonzero().squeeze(1)
        held.append(members[torch.randperm(len(members), generator=generator)[:take]])
    is_held = torch.zeros(len(labels_N), dtype=torch.bool)
    is_held[torch.cat(held)] = True
    return (~is_held).nonzero().squeeze(1), is_held.nonzero().squeeze(1)


def check_classes(splits: dict[str, TensorDict], classes: list[str], bounds: ClassShare, folder: Path) -> None:
    """Raise `UserError` if a split lacks a class or a class's share of a split is out of bounds."""
    missing, outside, shares = [], [], [bounds.min, bounds.max]
    for split, data in splits.items():
        counts_K = torch.bincount(data["label"].long(), minlength=len(classes))
        for name, images in zip(classes, counts_K.tolist(), strict=True):
            if images == 0:
                missing.append(f"  {split}: no image of class '{name}'")
            elif not bounds.min <= (share := images / len(data)) <= bounds.max:
                outside.append(f"  {split}: class '{name}' has {share:.4f}")
                shares.append(share)
    if missing:
        needed = "each class needs two images in the training file and one in the test file"
        raise UserError("\n".join([f"{folder}: {needed}, found:", *missing]))
    if outside:
        allowed = f"params.yaml: normalize.class_share: allowed are {bounds.min} to {bounds.max}, {folder} has:"
        low, high = floor(min(shares) * 1000) / 1000, ceil(max(shares) * 1000) / 1000
        raise UserError("\n".join([allowed, *outside, f"  `min: {low}` and `max: {high}` there would allow it"]))


def summarize(split: str, data: TensorDict) -> pl.DataFrame:
    """One row per raw image: id, split, label, mean and deviation of its pixels (0..255), sha256 of its bytes."""
    pixels_NP = data["image"].flatten(1)
    std_N, mean_N = torch.std_mean(pixels_NP.float(), dim=1, correction=0)
    return pl.DataFrame(
        {
            "id": data["id"].numpy(),
            "split": [split] * len(data),
            "label": data["label"].long().numpy(),
            "pixel_mean": mean_N.numpy(),
            "pixel_std": std_N.numpy(),
            "sha256": [hashlib.sha256(row).hexdigest() for row in pixels_NP.numpy()],
        }
    )


def count_images(summary: pl.DataFrame) -> dict[str, int]:
    """Images per split, and of the images how many have an exact copy in the same or in another split."""
    copies = summary.group_by("sha256").agg(images=pl.len(), splits=pl.col("split").n_unique())
    sizes = {split: summary.filter(split=split).height for split in schemas.SPLITS}
    across = int(copies.filter(pl.col("splits") > 1)["images"].sum())
    within = int(copies.filter((pl.col("splits") == 1) & (pl.col("images") > 1))["images"].sum())
    return {**sizes, "duplicates_across_splits": across, "duplicates_within_split": within}


def main() -> None:
    params = load_params()
    knobs, classes = params.normalize, params.chosen_dataset.classes
    num_classes = len(classes)
    folder = RAW / params.dataset
    verify("download", folder)
    train, test = (read_raw(folder, split) for split in ("train", "test"))
    for data in (train, test):
        validate_tensors(data, schemas.raw(num_classes), folder)
    ours, theirs = (tuple(data["image"].shape[1:]) for data in (train, test))
    if ours != theirs:
        raise UserError(f"{folder} has training images of shape {ours}, test images of shape {theirs}")
    # an image's id is its place in the training file, then in the test file
    train["id"] = torch.arange(len(train))
    test["id"] = torch.arange(len(train), len(train) + len(test))
    kept, held = stratified_split(train["label"], knobs.validation, params.seed)
    splits = {"train": train[kept], "validation": train[held], "test": test}

    check_classes(splits, classes, knobs.class_share, folder)
    summary = pl.concat([summarize(split, data) for split, data in splits.items()])
    validate(summary, schemas.summary(num_classes), NORMALIZED / "summary.parquet")
    with replacing(NORMALIZED) as partial:
        write_table(summary, partial / "summary.parquet", schemas.summary(num_classes))
        for split, data in splits.items():
            data["image"] = normalize_pixels(data["image"], knobs.mean, knobs.std)
            data["label"] = data["label"].long()
            write_tensors(data, partial / split, schemas.normalized(num_classes, knobs.mean, knobs.std))
    counts = count_images(summary)
    settings = knobs.model_dump() | {"seed": params.seed}
    duplicates = counts["duplicates_across_splits"] + counts["duplicates_within_split"]
    write_json({"images": len(summary), "duplicates": duplicates}, METRICS)
    write_json({**counts, "made_from": made_from(digest("download"), settings, torch.device("cpu"))}, DETAILS)
    record("normalize", NORMALIZED, METRICS, DETAILS)
    sizes = ", ".join(f"{counts[split]:,} {split}" for split in splits)
    print(f"normalize: {sizes}; {counts['duplicates_across_splits']} exact duplicates across splits")


if __name__ == "__main__":
    with reported("normalize"), timed("normalize"), alone("normalize"), sharing_cores():
        main()
