"""Measure how much each regularization technique gains on few images: `python -m benchmarks.overfitting`.

Writes benchmarks/overfitting.md. Recipe `convnet` learns 1,000 images without any technique, and with one at a time.
"""

import copy
from argparse import ArgumentParser
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch

from benchmarks.report import table, write
from benchmarks.training import UNMOVED, Data, begin, changed, load_data, project_params, run_epochs, take
from stages.core.machine.device import pick_device
from stages.core.training.config import Recipe
from stages.core.training.loop import evaluate_loss
from stages.core.training.progress import Row
from stages.train import best_row, is_finished

IMAGES = 1000  # for training, and the same number for validation
NONE = {
    "loss.label_smoothing": 0.0,
    "optimizer.lr": 0.003,
    "optimizer.weight_decay": 0.0,
    "schedule": {"name": "constant"},  # Early stopping allows no other.
    "model.dropout": 0.0,
    "regularization.l1": 0.0,
    "regularization.ema": 0.0,
    "regularization.patience": 0,
    "batch_size": 50,
    "epochs": 20,
    **UNMOVED,
}
MEANS: dict[str, dict[str, Any]] = {
    "none": {},
    "shift by up to 2 pixels": {"augmentation.shift": 2},
    "rotation by up to 12 degrees": {"augmentation.rotation": 12.0},
    "scale by up to 10%": {"augmentation.scale": 0.1},
    "shear by up to 12 degrees": {"augmentation.shear": 12.0},
    "elastic, 1 pixel": {"augmentation.elastic": 1.0},
    "dropout of 50%": {"model.dropout": 0.5},
    "label smoothing 0.1": {"loss.label_smoothing": 0.1},
    "L1, 0.0001": {"regularization.l1": 0.0001},
    "L2, as AdamW's weight decay 0.3": {"optimizer.weight_decay": 0.3},
    "moving average, 0.98 a step": {"regularization.ema": 0.98},
    "early stopping, patience 3": {"regularization.patience": 3},
}


class Outcome(NamedTuple):
    last_accuracy: float  # of the last epoch, on the test split
    kept_accuracy: float  # of the epoch of the lowest validation loss
    train_accuracy: float  # of the last epoch
    epochs: int


def run(recipe: Recipe, data: Data, device: torch.device, seed: int) -> Outcome:
    """Train as stage `train` does, and test the models of the last epoch and of the one that the stage would keep."""
    state = begin(recipe, data, device, seed)
    epochs = run_epochs(state, recipe, data, seed)
    rows: list[Row] = []
    best = copy.deepcopy(state.best_model)
    while not is_finished(rows, recipe):
        rows.append(row := next(epochs))
        if best_row(rows) is row:
            best.load_state_dict(state.best_model.state_dict())
    last_accuracy, kept_accuracy = (
        evaluate_loss(model, data.test, recipe.loss, device)[1] for model in (state.best_model, best)
    )
    return Outcome(last_accuracy, kept_accuracy, rows[-1]["train_accuracy"], len(rows))


def main() -> None:
    parser = ArgumentParser("python -m benchmarks.overfitting", description=__doc__)
    parser.add_argument(
        "--seeds", type=int, default=5, help="number of seeds, each with its own weights and images (default: 5)"
    )
    if (count := parser.parse_args().seeds) < 2:
        parser.error("--seeds: must be at least 2, to give a standard error")
    seeds = range(1, count + 1)
    device = pick_device(project_params().machine.device)
    data = load_data(device)
    data = data._replace(validation=take(data.validation, slice(IMAGES)))
    recipes = {name: changed(NONE | changes) for name, changes in MEANS.items()}
    results: dict[str, list[Outcome]] = {name: [] for name in MEANS}
    for seed in seeds:
        picked_N = torch.randperm(data.train.size, generator=torch.Generator().manual_seed(seed))[:IMAGES]
        few = data._replace(train=take(data.train, picked_N.to(data.train.inputs.device)))
        for name, recipe in recipes.items():
            results[name].append(run(recipe, few, device, seed))
            print(seed, name, results[name][-1], flush=True)
    rows = []
    for name, outcomes in results.items():
        gains = [
            100 * (one.last_accuracy - none.last_accuracy) for one, none in zip(outcomes, results["none"], strict=True)
        ]
        rows.append([
            name,
            f"{100 * mean(one.last_accuracy for one in outcomes):.2f}",
            "" if name == "none" else f"{mean(gains):+.2f} +- {stdev(gains) / len(gains) ** 0.5:.2f}",
            f"{100 * mean(one.kept_accuracy for one in outcomes):.2f}",
            f"{100 * mean(one.train_accuracy for one in outcomes):.1f}",
            f"{mean(one.epochs for one in outcomes):.0f}",
        ])  # fmt: skip
    head = [
        "technique", "test accuracy of the last epoch, %", "gain, points", "of the kept epoch, %",
        "training accuracy, %", "epochs",
    ]  # fmt: skip
    text = [
        f"Recipe `convnet` on {IMAGES:,} images of MNIST, {NONE['epochs']} epochs with batches of {NONE['batch_size']}."
        f" The kept epoch is the one with the lowest loss on {IMAGES:,} other images. The figures are means over seeds"
        f" 1 to {len(seeds)}, each with its own images. Gains are computed by seed and given with their standard"
        " error; a gain below three standard errors says little.",
        table(head, rows),
    ]
    figures = {name: [outcome._asdict() for outcome in outcomes] for name, outcomes in results.items()}
    write("overfitting", "Regularization techniques", ("torch",), text, figures)


if __name__ == "__main__":
    main()
