"""Train the chosen recipe.

Reads artifacts/normalized/train and artifacts/normalized/validation.
Writes artifacts/model/model.pt, the weights of the epoch that did best on the validation split, and
artifacts/plots/history.csv, one row per epoch; while it runs, artifacts/live/ for DVCLive's watchers.
Fails when the loss is not finite or the device is missing.

Shape suffixes: N images of a batch, C = 1 channel, H x W pixels, K classes.
"""

import hashlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import polars as pl
import torch
import torch.nn.functional as F
from dvclive.live import Live
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensordict import TensorDict
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from stages.core import params, schemas
from stages.core.artifacts import read_tensors, validate, write_table
from stages.core.checkpoint import Manifest, save_checkpoint
from stages.core.errors import reported
from stages.core.models import build_model
from stages.core.runtime import autocast_dtype, pick_device

NORMALIZED = Path("artifacts/normalized")
MODEL = Path("artifacts/model/model.pt")
HISTORY = Path("artifacts/plots/history.csv")
LIVE = "artifacts/live"


def shift(images_NCHW: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Move each image by its own random -pixels..pixels in both directions; the border's pixels fill the gap."""
    count, _, height, width = images_NCHW.shape
    padded = F.pad(images_NCHW, [pixels] * 4, mode="replicate")
    corners_N2 = torch.randint(2 * pixels + 1, (count, 2), generator=generator).to(images_NCHW.device)
    rows_NH = corners_N2[:, :1] + torch.arange(height, device=images_NCHW.device)
    columns_NW = corners_N2[:, 1:] + torch.arange(width, device=images_NCHW.device)
    batch_N = torch.arange(count, device=images_NCHW.device)
    return padded[batch_N[:, None, None, None], 0, rows_NH[:, None, :, None], columns_NW[:, None, None, :]]


def make_optimizer(model: nn.Module, config: params.Sgd | params.AdamW) -> torch.optim.Optimizer:
    match config:
        case params.Sgd(lr=lr, momentum=momentum, weight_decay=decay):
            return torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=decay)
        case params.AdamW(lr=lr, weight_decay=decay):
            return torch.optim.AdamW(model.parameters(), lr, weight_decay=decay)


def make_schedule(
    optimizer: torch.optim.Optimizer, config: params.Constant | params.OneCycle, steps: int
) -> LRScheduler:
    match config:
        case params.Constant():
            return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        case params.OneCycle(warmup=warmup):
            steps = max(steps, 3)
            warmup = max(warmup, 2 / steps)  # torch divides by the length of each leg
            peak = optimizer.param_groups[0]["lr"]
            return torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=warmup)


def assess(model: nn.Module, data: TensorDict, batch_size: int = 1000) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on all of `data`, without augmentation."""
    model.eval()
    loss, correct = torch.zeros((), device=data.device), torch.zeros((), device=data.device)
    with torch.inference_mode():
        for batch in data.split(batch_size):
            logits_NK = model(batch["image"]).float()
            loss += F.cross_entropy(logits_NK, batch["label"], reduction="sum")
            correct += (logits_NK.argmax(1) == batch["label"]).sum()
    return loss.item() / len(data), correct.item() / len(data)


def fit(
    model: nn.Module,
    recipe: params.Recipe,
    train: TensorDict,
    validation: TensorDict,
    generator: torch.Generator,
    *,
    stepped: Callable[[], object] = lambda: None,
) -> Iterator[dict[str, float]]:
    """Train `model` in place and yield each epoch's row of the history.

    Model and data are on one device; `generator`, on the CPU, draws the order and the augmentation, so that every
    device sees the same batches. A last batch that would be smaller than the others is made of what is left.
    """
    device = train["image"].device
    dtype = autocast_dtype(recipe.precision, device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    steps = -(-len(train) // recipe.batch_size)
    optimizer = make_optimizer(model, recipe.optimizer)
    schedule = make_schedule(optimizer, recipe.schedule, steps * recipe.epochs)
    images_NCHW, labels_N = train["image"], train["label"]

    for epoch in range(1, recipe.epochs + 1):
        model.train()
        lr = float(schedule.get_last_lr()[0])
        # summed on the device: asking for a number at every step would wait for every step
        loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
        for picked in torch.randperm(len(train), generator=generator).to(device).split(recipe.batch_size):
            batch_NCHW, target_N = images_NCHW[picked], labels_N[picked]
            if recipe.augmentation.shift:
                batch_NCHW = shift(batch_NCHW, recipe.augmentation.shift, generator)
            with autocast:
                logits_NK = model(batch_NCHW)
            loss = F.cross_entropy(logits_NK.float(), target_N, label_smoothing=recipe.loss.label_smoothing)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            loss_sum += loss.detach() * len(picked)
            correct += (logits_NK.detach().argmax(1) == target_N).sum()
            stepped()
        with autocast:
            validation_loss, validation_accuracy = assess(model, validation)
        yield {
            "epoch": epoch,
            "train_loss": loss_sum.item() / len(train),
            "train_accuracy": correct.item() / len(train),
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "lr": lr,
        }


def hash_tensors(*splits: TensorDict) -> str:
    """sha256 of all images and labels."""
    digest = hashlib.sha256()
    for data in splits:
        for key in ("image", "label"):
            digest.update(data[key].numpy())
    return digest.hexdigest()


def main() -> None:
    knobs = params.load_params()
    recipe, classes, pixels = knobs.chosen_recipe, knobs.chosen_dataset.classes, knobs.normalize
    device = pick_device(knobs.device)
    schema = schemas.normalized(len(classes), pixels.mean, pixels.std)
    splits = [read_tensors(NORMALIZED / name, schema) for name in ("train", "validation")]
    train, validation = (data.to(device) for data in splits)
    image_shape = tuple(train["image"].shape[1:])

    torch.manual_seed(knobs.seed)
    model = build_model(recipe.model, image_shape, len(classes)).to(device).to(memory_format=torch.channels_last)
    count = sum(weight.numel() for weight in model.parameters())
    print(f"train: recipe {knobs.recipe}, {count:,} parameters, {len(train):,} images, on {device}", flush=True)

    rows: list[dict[str, float]] = []
    best: dict[str, float] = {}
    console = Console()
    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        Live(LIVE, save_dvc_exp=False, dvcyaml=False) as live,
    ):
        bar = progress.add_task("train", total=recipe.epochs * -(-len(train) // recipe.batch_size), epoch=1)
        generator = torch.Generator().manual_seed(knobs.seed)
        for row in fit(model, recipe, train, validation, generator, stepped=lambda: progress.advance(bar)):
            rows.append(row)
            history = pl.DataFrame(rows)
            validate(history, schemas.history(), HISTORY)
            if not best or row["validation_accuracy"] > best["validation_accuracy"]:
                best, weights = row, deepcopy(model.state_dict())
            for name, value in row.items():
                if name != "epoch":
                    live.log_metric(name, value)
            live.next_step()
            progress.update(bar, epoch=row["epoch"] + 1)
            progress.print(
                f"train: epoch {row['epoch']}/{recipe.epochs}, loss {row['train_loss']:.4f},"
                f" validation loss {row['validation_loss']:.4f}, accuracy {row['validation_accuracy']:.2%}"
            )

    manifest = Manifest(
        format=1,
        recipe=knobs.recipe,
        settings=recipe,
        dataset=knobs.dataset,
        classes=classes,
        image_shape=image_shape,
        mean=pixels.mean,
        std=pixels.std,
        data_sha256=hash_tensors(*splits),
        epoch=int(best["epoch"]),
    )
    write_table(history, HISTORY, schemas.history())
    save_checkpoint(MODEL, manifest, {name: weight.cpu().contiguous() for name, weight in weights.items()})
    print(f"train: kept epoch {manifest.epoch}, validation accuracy {best['validation_accuracy']:.2%}, in {MODEL}")


if __name__ == "__main__":
    with reported("train"):
        main()
