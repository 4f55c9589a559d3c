"""The tutorial's training loop against recipe `article`: `python -m benchmarks.tutorial` writes benchmarks/tutorial.md.

Same images, network, first weights' distribution, optimizer, batches and epochs, in turn, each in a fresh process. The
clock runs from the first batch to the end of the last epoch; imports and the opening of the data are outside, the
recipe's validation is inside.
"""

import json
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import median

import torch
from tensordict import TensorDict
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from benchmarks.report import PROJECT, spread, table, write
from benchmarks.training import CLASSES, SHAPE, begin, in_fresh_process, load_splits
from stages import train
from stages.core import params
from stages.core.machine.device import pick_device
from stages.core.nets.registry import build_model
from stages.core.training.config import Recipe, Sgd

RAW = PROJECT / "artifacts/raw/mnist"
TRAIN = PROJECT / train.NORMALIZED / "train"


def run_tutorial(recipe: Recipe, device: torch.device, seed: int) -> tuple[float, float]:
    """Seconds and test accuracy of the loop that the tutorials of PyTorch show."""
    torch.manual_seed(seed)
    assert isinstance(recipe.optimizer, Sgd)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "MNIST").mkdir()
        (Path(root) / "MNIST/raw").symlink_to(RAW)
        picked = TensorDict.load_memmap(str(TRAIN))["id"].tolist()
        train_set = Subset(datasets.MNIST(root, train=True, transform=transform), picked)
        test_set = datasets.MNIST(root, train=False, transform=transform)
    train_loader = DataLoader(train_set, batch_size=recipe.batch_size, shuffle=True, num_workers=2)
    test_loader = DataLoader(test_set, batch_size=1000, num_workers=2)
    model = build_model(recipe.model, SHAPE, CLASSES).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.optimizer.lr, momentum=recipe.optimizer.momentum)
    started = time.perf_counter()
    for epoch in range(recipe.epochs):
        running_loss = 0.0
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        print(f"tutorial: epoch {epoch + 1}, loss {running_loss / len(train_loader):.4f}", file=sys.stderr)
    seconds = time.perf_counter() - started
    model.eval()
    with torch.no_grad():
        correct = sum(
            (model(images.to(device)).argmax(1) == labels.to(device)).sum().item() for images, labels in test_loader
        )
    return seconds, correct / len(test_set)


def run_recipe(recipe: Recipe, device: torch.device, seed: int) -> tuple[float, float]:
    """Seconds and test accuracy, after the last epoch, of this project's loop."""
    splits = load_splits(device)
    training = begin(recipe, device, seed, len(splits["train"]))
    started = time.perf_counter()
    for row in train.fit(training, recipe, splits["train"], splits["validation"], seed):
        print(f"article: epoch {row['epoch']}, loss {row['train_loss']:.4f}", file=sys.stderr)
    seconds = time.perf_counter() - started
    return seconds, train.assess(training.result, splits["test"], recipe.loss, device)[1]


LOOPS = {"tutorial": run_tutorial, "article": run_recipe}


def main() -> None:
    parser = ArgumentParser("python -m benchmarks.tutorial", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each, in turn (default: 3)")
    parser.add_argument("--once", nargs=2, metavar=("LOOP", "SEED"), help="one run here; its figures as JSON")
    arguments = parser.parse_args()
    knobs = params.load_params(PROJECT / "params.yaml")
    recipe = knobs.recipes["article"]
    if arguments.once:
        name, seed = arguments.once
        print(json.dumps(LOOPS[name](recipe, pick_device(knobs.device), int(seed))))
        return
    runs = arguments.runs
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in LOOPS}
    for seed in range(1, runs + 1):
        for name, outcomes in results.items():
            outcomes.append(in_fresh_process("benchmarks.tutorial", name, seed))
    ratio = [slow[0] / fast[0] for slow, fast in zip(results["tutorial"], results["article"], strict=True)]
    rows = [
        [label, spread([run[0] for run in results[name]]), spread([100 * run[1] for run in results[name]], 2)]
        for name, label in (
            ("tutorial", "the tutorial's loop, DataLoader with 2 workers"),
            ("article", "recipe `article`"),
        )
    ]
    images = len(TensorDict.load_memmap(str(TRAIN)))
    text = [
        f"MLP 784-128-64-10, SGD, batches of {recipe.batch_size}, {recipe.epochs} epochs of {images:,} images,"
        f" seeds 1 to {runs}, in turn, each in a fresh process; median (smallest to largest). Imports and the opening"
        " of the data are outside.",
        table(["", "seconds of training", "test accuracy, %"], rows),
        f"**{median(ratio):.0f} times faster** ({min(ratio):.1f} to {max(ratio):.1f}).",
    ]
    write("tutorial", "The tutorial's loop against recipe `article`", ("torch", "torchvision"), text, results)


if __name__ == "__main__":
    main()
