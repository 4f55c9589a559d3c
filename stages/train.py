"""Train the chosen recipe.

Reads artifacts/normalized/train and artifacts/normalized/validation.
Writes artifacts/model/model.pt, the weights of the epoch of the lowest validation loss, and
artifacts/plots/history.csv, one row per epoch; while it runs, artifacts/live/ for DVCLive's watchers and
artifacts/checkpoints/, from which a killed training goes on.
Fails when the loss is not finite, the device is missing or one of several processes dies.

`train.processes` of params.yaml, or torchrun, makes it several processes that share each batch (PyTorch's DDP).

Shape suffixes: N images of a batch, S steps, C planes, H x W pixels, K classes.
"""

import copy
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import polars as pl
import torch
import torch.distributed as dist
from dvclive.live import Live
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensordict import MemoryMappedTensor, TensorDict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stages.core import params, resume, schemas
from stages.core.artifacts import alone, is_first, validate, write_table
from stages.core.augmentation import augment
from stages.core.checkpoint import Manifest, save_checkpoint
from stages.core.errors import UserError, reported
from stages.core.inference import confidence_threshold, fit_temperature, infer
from stages.core.models import build_model
from stages.core.optimization import l1_norm, loss_of, make_optimizer, make_schedule
from stages.core.provenance import describe
from stages.core.runtime import CudaGraph, autocast_dtype, fits, group, joined, launch, pick_device, place, tune_process
from stages.core.sums import digest, record, verify
from stages.core.tensors import read_tensors
from stages.core.threads import sharing_cores
from stages.core.timing import timed

NORMALIZED = Path("artifacts/normalized")
MODEL = Path("artifacts/model/model.pt")
HISTORY = Path("artifacts/plots/history.csv")
LIVE = "artifacts/live"
ASSESSED = 1000  # images a batch without gradients


class Training(NamedTuple):
    """What a step changes."""

    model: nn.Module
    average: nn.Module | None  # the same network with the moving average of the weights and statistics
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler

    @property
    def result(self) -> nn.Module:
        """The model that the training is for."""
        return self.average or self.model

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._asdict().items() if part}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._asdict().items():
            if part:
                part.load_state_dict(state[name])


def start_training(recipe: params.Recipe, model: nn.Module, train_images: int) -> Training:
    """Everything fresh but `model`, which is on its device."""
    steps = recipe.epochs * count_steps(recipe, train_images)
    optimizer = make_optimizer(model, recipe.optimizer)
    schedule = make_schedule(optimizer, recipe.schedule, steps)
    average = copy.deepcopy(model) if recipe.regularization.ema else None
    return Training(model, average, optimizer, schedule)


def moving_average(average: nn.Module, model: nn.Module, decay: float) -> Callable[[], None]:
    """What makes a step of the exponential moving average, as long as the tensors of both stay the same.

    Torch's AveragedModel would wait for a GPU at each.
    """
    averages, latest = (
        [value for value in each.state_dict().values() if value.is_floating_point()] for each in (average, model)
    )
    return partial(get_ema_multi_avg_fn(decay), averages, latest, 0)


def batch_size_of(recipe: params.Recipe, train_images: int) -> int:
    """The recipe's, or all images where there are fewer."""
    return min(recipe.batch_size, train_images)


def count_steps(recipe: params.Recipe, train_images: int) -> int:
    """Full batches in an epoch: what is left over is another's turn in the next epoch."""
    return train_images // batch_size_of(recipe, train_images)


def share_of_batch(recipe: params.Recipe, train_images: int, processes: int) -> int:
    """Images of each batch for each process; `UserError` where they are not as many for all."""
    batch = batch_size_of(recipe, train_images)
    if batch % processes:
        raise UserError(f"{processes} processes cannot share batches of {batch} images: none must be left over")
    return batch // processes


def batches(data: TensorDict, order_SN: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of each row of `order_SN`, on `device`.

    Data that are too large for it are read one batch ahead, for CUDA through pinned memory.
    """
    images_NCHW, labels_N = data["image"], data["label"]
    if images_NCHW.device == device and (device.type != "cpu" or fits(data, device)):
        for picked_N in order_SN.to(device):
            yield images_NCHW[picked_N], labels_N[picked_N]
        return

    def fetch(picked_N: Tensor) -> tuple[Tensor, Tensor]:
        read_ahead(images_NCHW, picked_N)
        batch = images_NCHW[picked_N], labels_N[picked_N]
        if device.type == "cuda":
            batch = batch[0].pin_memory(), batch[1].pin_memory()
        return batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(fetch, order_SN[0])
        for picked_N in order_SN[1:]:
            batch, coming = coming.result(), reader.submit(fetch, picked_N)
            yield batch
        yield coming.result()


def read_ahead(images_NCHW: Tensor, picked_N: Tensor) -> None:
    """Have the kernel read these images of a memory map all at once; page faults would wait for page after page."""
    if isinstance(images_NCHW, MemoryMappedTensor) and hasattr(os, "posix_fadvise"):
        size = images_NCHW[0].nbytes
        with Path(images_NCHW.filename).open("rb") as file:
            for index in picked_N.tolist():
                os.posix_fadvise(file.fileno(), index * size, size, os.POSIX_FADV_WILLNEED)


def total(*sums: Tensor) -> list[float]:
    """Each summed over all processes."""
    together = torch.stack(sums)
    if dist.is_initialized():
        dist.all_reduce(together)
    return together.tolist()


def assess(
    model: nn.Module, data: TensorDict, loss: params.CrossEntropy | params.Mse, device: torch.device
) -> tuple[float, float]:
    """Mean loss and accuracy on all of `data`, without augmentation and dropout."""
    rank, processes = group()
    model.eval()
    if dist.is_initialized():
        for statistics in model.buffers():  # each process has had its own; the first one's are saved
            dist.broadcast(statistics, 0)
    loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    with torch.inference_mode():
        for start in range(rank * ASSESSED, len(data), processes * ASSESSED):
            batch = data[start : start + ASSESSED].to(device)
            logits_NK = model(batch["image"]).float()
            loss_sum += loss_of(logits_NK, batch["label"], loss) * len(batch)
            correct += (logits_NK.argmax(1) == batch["label"]).sum()
    loss_total, correct_total = total(loss_sum, correct)
    return loss_total / len(data), correct_total / len(data)


def random_stream(*name: object) -> int:
    """The seed of the random stream of this name: of a larger one, torch's generator on a CPU takes 32 bits alone."""
    return int.from_bytes(hashlib.sha256(repr(name).encode()).digest()[:4])


def fit(
    training: Training,
    recipe: params.Recipe,
    train: TensorDict,
    validation: TensorDict,
    seed: int,
    *,
    first_epoch: int = 1,
    compile_mode: str = "none",
    cuda_graph: bool = True,
    stepped: Callable[[], object] = lambda: None,
) -> Iterator[dict[str, float]]:
    """Train in place and yield each epoch's row of the history.

    The data lie on the model's device, or in memory maps. Every epoch draws from random streams of its own, so that one
    can begin at any epoch; order and augmentation are those of one process also where several share the batches.
    """
    rank, processes = group()
    device = next(training.model.parameters()).device
    dtype = autocast_dtype(recipe.precision, device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    network = DistributedDataParallel(training.model) if processes > 1 else training.model
    if compile_mode != "none":
        network = torch.compile(network, mode=compile_mode)  # type: ignore[assignment]  # It is called in the same way.
    steps, per_process = count_steps(recipe, len(train)), share_of_batch(recipe, len(train), processes)
    order_generator, noise = (torch.Generator(place) for place in ("cpu", device))
    # summed on the device: asking for a number at every step would wait for every step
    loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)

    def forward_and_backward(images_NCHW: Tensor, labels_N: Tensor) -> None:
        training.optimizer.zero_grad()
        # outside of autocast: bfloat16 is too coarse for places in an image
        augmented_NCHW = augment(images_NCHW, recipe.augmentation, noise, rank, processes)
        with autocast:
            logits_NK = network(augmented_NCHW)
        loss = loss_of(logits_NK.float(), labels_N, recipe.loss)
        loss_sum.add_(loss.detach(), alpha=per_process)
        correct.add_((logits_NK.detach().argmax(1) == labels_N).sum())
        if recipe.regularization.l1:
            loss = loss + recipe.regularization.l1 * l1_norm(training.model)
        loss.backward()

    replayed = cuda_graph and device.type == "cuda" and processes == 1
    make_gradients = CudaGraph(forward_and_backward, noise) if replayed else forward_and_backward
    follow = None
    if training.average:
        follow = moving_average(training.average, training.model, recipe.regularization.ema)

    for epoch in range(first_epoch, recipe.epochs + 1):
        order_generator.manual_seed(random_stream("order", seed, epoch))
        noise.manual_seed(random_stream("augmentation", seed, epoch))
        torch.manual_seed(random_stream("dropout", seed, epoch, rank))
        order_SN = torch.randperm(len(train), generator=order_generator)[: steps * per_process * processes]
        mine_SN = order_SN.view(steps, processes, per_process)[:, rank]
        network.train()
        lr = float(training.schedule.get_last_lr()[0])
        loss_sum.zero_()
        correct.zero_()
        for images_NCHW, labels_N in batches(train, mine_SN, device):
            make_gradients(images_NCHW, labels_N)
            training.optimizer.step()
            training.schedule.step()
            if follow:
                follow()
            stepped()
        train_loss, train_correct = total(loss_sum, correct)
        with autocast:
            validation_loss, validation_accuracy = assess(training.result, validation, recipe.loss, device)
        yield {
            "epoch": epoch,
            "train_loss": train_loss / order_SN.numel(),
            "train_accuracy": train_correct / order_SN.numel(),
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "lr": lr,
        }


@contextmanager
def written(place: str) -> Iterator[None]:
    """Name the place where DVCLive, and DVC, whose state it opens, cannot write; their errors do not."""
    try:
        yield
    except sqlite3.Error as error:
        raise UserError(f"{place} cannot be written: DVC's state, mostly in /var/tmp/dvc: {error}") from error
    except OSError as error:
        raise UserError(f"{place} cannot be written: {error.strerror or error}") from error


class Watch:
    """What one sees of a running training: a bar, a line for each epoch, and the files of DVCLive."""

    def __init__(self, recipe: params.Recipe, train_images: int) -> None:
        self.epochs, self.steps = recipe.epochs, count_steps(recipe, train_images)
        self.images = self.steps * batch_size_of(recipe, train_images)
        if self.steps == 1:
            print(f"train: batch_size {recipe.batch_size:,} makes each epoch a single step of {self.images:,} images")
        console = Console()
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.bar = self.progress.add_task("train", total=self.epochs * self.steps, epoch=1)
        with written(LIVE):
            self.live = Live(LIVE, save_dvc_exp=False, dvcyaml=False)
        self.since = time.monotonic()

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        self.live.end()

    def step(self) -> None:
        self.progress.advance(self.bar)

    def log(self, row: dict[str, float]) -> None:
        with written(LIVE):
            for name, value in row.items():
                if name != "epoch":
                    self.live.log_metric(name, value)
            self.live.next_step()
        self.progress.update(self.bar, epoch=row["epoch"] + 1, completed=row["epoch"] * self.steps)

    def tell(self, row: dict[str, float]) -> None:
        self.log(row)
        now = time.monotonic()
        took, self.since = now - self.since, now
        text = (
            f"train: epoch {row['epoch']}/{self.epochs}, loss {row['train_loss']:.4f},"
            f" validation loss {row['validation_loss']:.4f}, accuracy {row['validation_accuracy']:.2%},"
            f" {self.images / took:,.0f} images/s, {took * (self.epochs - row['epoch']):.0f} s left"
        )
        self.progress.console.print(text, soft_wrap=True)


def best_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """The first row of the lowest validation loss: between good epochs accuracy differs by a few images, by chance."""
    return min(rows, key=lambda row: row["validation_loss"])


def check_finite(row: dict[str, float], knobs: params.Params) -> None:
    """Raise `UserError` if an epoch's loss is not finite, because no later epoch would recover from that."""
    if not isfinite(row["train_loss"] + row["validation_loss"]):
        raise UserError(
            f"epoch {row['epoch']} ended with a loss of {row['train_loss']} and a validation loss of"
            f" {row['validation_loss']}; params.yaml: recipes.{knobs.recipe}.optimizer.lr is"
            f" {knobs.chosen_recipe.optimizer.lr}, a lower one may keep them finite"
        )


def is_over(rows: list[dict[str, float]], recipe: params.Recipe) -> bool:
    patience = recipe.regularization.patience
    tired = bool(patience and rows) and rows[-1]["epoch"] - best_of(rows)["epoch"] >= patience
    return tired or len(rows) == recipe.epochs


def go_on(training: Training, checkpoint: Path | None) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Load an unfinished training, where there is one: the rows of its history and the weights of its best epoch."""
    saved = [resume.load(checkpoint) if checkpoint else None]
    if dist.is_initialized():  # the first process alone has read it
        dist.broadcast_object_list(saved)
    if saved[0] is None:
        return [], {}
    training.load_state_dict(saved[0]["training"])
    return saved[0]["rows"], saved[0]["weights"]


def main() -> None:
    """In this process, alone or as one of those that torchrun has started: `train.processes` is for `launch`."""
    knobs = params.load_params()
    device = pick_device(knobs.device)
    tune_process(device)
    try:
        with joined(device) as own:
            run(knobs, own)
    except KeyboardInterrupt:
        if is_first():
            print("train: the next run goes on after the last finished epoch", flush=True)
        raise


def run(knobs: params.Params, device: torch.device) -> None:
    recipe, classes, pixels = knobs.chosen_recipe, knobs.chosen_dataset.classes, knobs.normalize
    schema = schemas.normalized(len(classes), pixels.mean, pixels.std)
    verify("normalize", NORMALIZED)
    train, validation = (read_tensors(NORMALIZED / split, schema) for split in ("train", "validation"))
    image_shape = cast("tuple[int, int, int]", tuple(train["image"].shape[1:]))
    data_sha256, (rank, processes) = digest("normalize", NORMALIZED), group()

    torch.manual_seed(knobs.seed)
    model = build_model(recipe.model, image_shape, len(classes)).to(device).to(memory_format=torch.channels_last)
    if processes > 1 and device.type == "cuda":  # elsewhere each process has batch statistics of its own
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    training = start_training(recipe, model, len(train))

    made_of = {"data": data_sha256, "recipe": recipe.model_dump(), "seed": knobs.seed, "classes": len(classes)}
    key = resume.fingerprint(**made_of, trained_on=trained_on(knobs, device))
    with (
        resume.claimed(key) if rank == 0 else nullcontext() as checkpoint,
        Watch(recipe, len(train)) if rank == 0 else nullcontext() as watch,
    ):
        rows, weights = go_on(training, checkpoint)
        if watch:
            count = sum(weight.numel() for weight in model.parameters())
            goes_on = f", goes on after epoch {len(rows)}" if rows else ""
            print(f"train: recipe {knobs.recipe}, {count:,} parameters, {len(train):,} images", end=" ")
            print(f"on {processes} x {device.type}{goes_on}", flush=True)
            for row in rows:
                watch.log(row)
        epochs = fit(
            training,
            recipe,
            place(train, device),
            place(validation, device),
            knobs.seed,
            first_epoch=len(rows) + 1,
            compile_mode=knobs.train.compile,
            cuda_graph=knobs.train.cuda_graph,
            stepped=watch.step if watch else lambda: None,
        )
        while not is_over(rows, recipe):
            rows.append(row := next(epochs))
            check_finite(row, knobs)
            validate(pl.DataFrame(rows), schemas.history(), HISTORY)
            if best_of(rows) is row:
                weights = {name: weight.cpu().clone() for name, weight in training.result.state_dict().items()}
            if checkpoint:
                resume.save({"training": training.state_dict(), "rows": rows, "weights": weights}, checkpoint)
            if watch:
                watch.tell(row)
        if dist.is_initialized():
            dist.barrier()  # nothing is written unless all have come this far
        if rank == 0:
            save(knobs, data_sha256, rows, weights, validation)


def trained_on(knobs: params.Params, device: torch.device) -> str:
    """What else than params, data and code makes a training's sums."""
    _, processes = group()
    dtype = str(autocast_dtype(knobs.chosen_recipe.precision, device)).removeprefix("torch.")
    compiled = "" if knobs.train.compile == "none" else f", compiled ({knobs.train.compile})"
    return f"{processes} x {describe(device)}, {dtype}{compiled}, torch {torch.__version__}"


def save(
    knobs: params.Params,
    data_sha256: str,
    rows: list[dict[str, float]],
    weights: dict[str, Tensor],
    validation: TensorDict,
) -> None:
    best, image_shape = best_of(rows), cast("tuple[int, int, int]", tuple(validation["image"].shape[1:]))
    model = build_model(knobs.chosen_recipe.model, image_shape, len(knobs.chosen_dataset.classes))
    model.load_state_dict(weights)
    device = pick_device(knobs.device)
    logits_NK, labels_N = infer(model, validation, device, ASSESSED), validation["label"].clone()
    temperature = fit_temperature(logits_NK, labels_N)
    unsure_below, unsure_by = confidence_threshold(logits_NK / temperature, labels_N, knobs.train.unsure)
    manifest = Manifest(
        format=3,
        recipe=knobs.recipe,
        settings=knobs.chosen_recipe,
        dataset=knobs.dataset,
        classes=knobs.chosen_dataset.classes,
        image_shape=image_shape,
        centre_ink=knobs.chosen_dataset.centre_ink,
        mean=knobs.normalize.mean,
        std=knobs.normalize.std,
        data_sha256=data_sha256,
        trained_on=trained_on(knobs, device),
        epoch=int(best["epoch"]),
        temperature=temperature,
        unsure_below=unsure_below,
        unsure_by=unsure_by,
    )
    write_table(pl.DataFrame(rows), HISTORY, schemas.history())
    save_checkpoint(MODEL, manifest, {name: weight.contiguous() for name, weight in weights.items()})
    record("train", MODEL, HISTORY)
    print(f"train: kept epoch {manifest.epoch}, validation accuracy {best['validation_accuracy']:.2%}, in {MODEL}")


if __name__ == "__main__":
    with reported("train"):
        if not launch("stages.train", params.load_params()):
            with timed("train"), alone("train"), sharing_cores():
                main()
