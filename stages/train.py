"""Train the network of the chosen recipe.

Reads artifacts/normalized/.
Writes artifacts/model/: model.pt, the weights of the epoch with the lowest validation loss, and manifest.json, which
describes them; artifacts/plots/history.csv, one row per epoch; artifacts/metrics/validation.json, the scores by which
training runs are compared. While it runs: artifacts/live/ for DVCLive's viewers, and artifacts/checkpoints/, from which
a run that was killed can be resumed.
Fails when the loss is not finite, the device is missing or one of several processes dies.

With `machine.processes` in params.yaml, or under torchrun, several processes share each batch.

Shape suffixes: N examples, K classes.
"""

from contextlib import nullcontext
from math import isfinite
from pathlib import Path

import polars as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.core.config.params import Params, load_params
from stages.core.data.splits import read_dataset
from stages.core.evaluation.calibration import confidence_threshold, fit_temperature
from stages.core.evaluation.inference import infer
from stages.core.evaluation.metrics import measure
from stages.core.examples.spec import Spec
from stages.core.files import layout
from stages.core.files.errors import UserError, report_errors
from stages.core.files.exclusive import exclusive, is_main_process
from stages.core.files.schemas import history
from stages.core.files.tables import validate, write_json, write_table
from stages.core.machine.device import autocast_dtype, describe_device, pick_device
from stages.core.machine.memory import keep_freed_memory
from stages.core.machine.threads import sharing_cores
from stages.core.nets.checkpoint import save_model
from stages.core.nets.manifest import Manifest
from stages.core.nets.registry import build_model
from stages.core.training import resume
from stages.core.training.batches import Examples, as_tensors, place
from stages.core.training.config import Recipe
from stages.core.training.distributed import launch, process_group, rank_and_world_size
from stages.core.training.loop import EVAL_BATCH_SIZE, count_steps, global_batch_size, train_epochs
from stages.core.training.progress import Row, TrainingProgress
from stages.core.training.state import TrainState, create_state

Weights = dict[str, Tensor]


def best_row(rows: list[Row]) -> Row:
    """Return the first row with the lowest validation loss; the accuracies of good epochs differ only by chance."""
    return min(rows, key=lambda row: row["validation_loss"])


def is_finished(rows: list[Row], recipe: Recipe) -> bool:
    """Return whether the last epoch is done, or the validation loss has not fallen for `patience` epochs."""
    patience = recipe.regularization.patience
    stalled = bool(patience and rows) and rows[-1]["epoch"] - best_row(rows)["epoch"] >= patience
    return stalled or len(rows) == recipe.epochs


def check_finite(row: Row, params: Params) -> None:
    """Raise `UserError` if an epoch's loss is not finite, because no later epoch would recover from that."""
    if not isfinite(row["train_loss"] + row["validation_loss"]):
        raise UserError(
            f"epoch {row['epoch']} ended with a loss of {row['train_loss']} and a validation loss of"
            f" {row['validation_loss']}; lower recipes.{params.recipe}.optimizer.lr in params.yaml,"
            f" now {params.chosen_recipe.optimizer.lr}"
        )


def tune_process(device: torch.device) -> None:
    """Change settings of the whole process that make training on `device` faster."""
    keep_freed_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # Allow TF32 for recipes in float32.
        torch.backends.cudnn.benchmark = True  # All batches have the same shape, so one search per kernel is enough.


def describe_environment(params: Params, device: torch.device) -> str:
    """Return everything besides params, data and code that affects the numbers."""
    _, world_size = rank_and_world_size()
    dtype = str(autocast_dtype(params.chosen_recipe.precision, device)).removeprefix("torch.")
    compiled = "" if params.machine.compile == "none" else f", compiled ({params.machine.compile})"
    return f"{world_size} x {describe_device(device)}, {dtype}{compiled}, torch {torch.__version__}"


def restore_checkpoint(state: TrainState, checkpoint: Path | None) -> tuple[list[Row], Weights]:
    """Load an unfinished training run, if there is one; return its history and the weights of its best epoch."""
    saved = [resume.load_checkpoint(checkpoint) if checkpoint else None]
    if dist.is_initialized():  # Only the first process has read it.
        dist.broadcast_object_list(saved)
    if saved[0] is None:
        return [], {}
    state.load_state_dict(saved[0]["state"])
    return saved[0]["rows"], saved[0]["weights"]


def train_to_the_end(
    params: Params, state: TrainState, train: Examples, validation: Examples, checkpoint: Path | None
) -> tuple[list[Row], Weights]:
    """Train the remaining epochs; return the whole history and the weights of the best epoch."""
    recipe, device = params.chosen_recipe, next(state.model.parameters()).device
    steps = count_steps(recipe, train.size)
    rank, world_size = rank_and_world_size()
    with show_progress(recipe, steps, train.size) if rank == 0 else nullcontext() as progress:
        rows, weights = restore_checkpoint(state, checkpoint)
        if progress:
            count = sum(weight.numel() for weight in state.model.parameters())
            resumed = f", resumed after epoch {len(rows)}" if rows else ""
            print(f"train: recipe {params.recipe}, {count:,} parameters, {train.size:,} images", end=" ")
            print(f"on {world_size} x {device.type}{resumed}", flush=True)
            for row in rows:
                progress.log(row)
        epochs = train_epochs(
            state,
            recipe,
            place(train, device),
            place(validation, device),
            params.seed,
            machine=params.machine,
            first_epoch=len(rows) + 1,
            on_step=progress.advance if progress else lambda: None,
        )
        while not is_finished(rows, recipe):
            rows.append(row := next(epochs))
            check_finite(row, params)
            validate(pl.DataFrame(rows), history(), layout.HISTORY)
            if best_row(rows) is row:
                weights = {name: weight.cpu().clone() for name, weight in state.best_model.state_dict().items()}
            if checkpoint:
                resume.save_checkpoint({"state": state.state_dict(), "rows": rows, "weights": weights}, checkpoint)
            if progress:
                progress.report(row)
    return rows, weights


def show_progress(recipe: Recipe, steps: int, examples: int) -> TrainingProgress:
    """Return the display of the training run; warn if the whole split is a single batch."""
    batch_size = global_batch_size(recipe, examples)
    if steps == 1:
        print(f"train: batch_size {recipe.batch_size:,} makes each epoch a single step of {batch_size:,} images")
    return TrainingProgress(recipe.epochs, steps, batch_size)


def write_model(params: Params, spec: Spec, rows: list[Row], weights: Weights, validation: Examples) -> None:
    """Calibrate the model of the best epoch on the validation split, and write everything about it."""
    best, device = best_row(rows), pick_device(params.machine.device)
    model = build_model(params.chosen_recipe.model, spec)
    model.load_state_dict(weights)
    logits_NK, labels_N = infer(model, validation.inputs, device, EVAL_BATCH_SIZE), validation.labels
    temperature = fit_temperature(logits_NK, labels_N)
    unsure_below, unsure_by = confidence_threshold(logits_NK / temperature, labels_N, params.train.unsure)
    scores, _ = measure(logits_NK / temperature, labels_N)
    manifest = Manifest(
        format=5,
        recipe=params.recipe,
        settings=params.chosen_recipe,
        dataset=params.dataset,
        spec=spec,
        data_sha256=layout.NORMALIZE.digest(layout.NORMALIZED),
        environment=describe_environment(params, device),
        epoch=int(best["epoch"]),
        weights=sum(weight.numel() for weight in model.parameters()),
        temperature=temperature,
        unsure_below=unsure_below,
        unsure_by=unsure_by,
    )
    write_table(pl.DataFrame(rows), layout.HISTORY, history())
    write_json({f"validation_{name}": scores[name] for name in ("accuracy", "f1", "loss")}, layout.VALIDATION_METRICS)
    save_model(manifest, {name: weight.contiguous() for name, weight in weights.items()})
    layout.TRAIN.record(layout.MODEL, layout.MANIFEST, layout.HISTORY, layout.VALIDATION_METRICS)
    print(
        f"train: kept epoch {manifest.epoch}, validation accuracy {best['validation_accuracy']:.2%}, in {layout.MODEL}"
    )


def run(params: Params, device: torch.device) -> None:
    """Train in this process, alone or as one of a process group, and write the results in the first one."""
    layout.NORMALIZE.verify(layout.NORMALIZED)
    dataset = read_dataset()
    train, validation = (as_tensors(dataset.read(split)) for split in ("train", "validation"))
    recipe = params.chosen_recipe

    torch.manual_seed(params.seed)
    model = build_model(recipe.model, dataset.spec).to(device).to(memory_format=torch.channels_last)
    if dist.is_initialized() and device.type == "cuda":  # On a CPU each process keeps its own batch statistics.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    state = create_state(recipe, model, recipe.epochs * count_steps(recipe, train.size))

    key = resume.fingerprint(
        data=layout.NORMALIZE.digest(layout.NORMALIZED),
        recipe=recipe.model_dump(),
        seed=params.seed,
        environment=describe_environment(params, device),
    )
    rank, _ = rank_and_world_size()
    with resume.claim_checkpoint(key) if rank == 0 else nullcontext() as checkpoint:
        rows, weights = train_to_the_end(params, state, train, validation, checkpoint)
        if dist.is_initialized():
            dist.barrier()  # Nothing is written unless every process gets this far.
        if rank == 0:
            write_model(params, dataset.spec, rows, weights, validation)


def main() -> None:
    params = load_params()
    device = pick_device(params.machine.device)
    tune_process(device)
    try:
        with process_group(device) as own_device:
            run(params, own_device)
    except KeyboardInterrupt:
        if is_main_process():
            print("train: the next run resumes after the last finished epoch", flush=True)
        raise


if __name__ == "__main__":
    with report_errors("train"):
        if not launch("stages.train", load_params().machine):
            with exclusive("train"), sharing_cores():
                main()
