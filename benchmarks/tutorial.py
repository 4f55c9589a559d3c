"""The tutorial's training loop against recipe `article`: `python -m benchmarks.tutorial` writes benchmarks/tutorial.md.

Same images, network, first weights' distribution, optimizer, batches and epochs, in turn, each in a fresh process. The
clock runs from the first batch to the end of the last epoch; imports and the opening of the data are outside, the
recipe's validation is inside.
"""

import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, get_start_method, set_start_method
from pathlib import Path
from statistics import median

import torch
from tensordict import TensorDict
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from benchmarks.report import PROJECT, spread, table, write
from benchmarks.training import CLASSES, SHAPE, begin, load_splits
from stages import train
from stages.core import params
from stages.core.models import build_model
from stages.core.runtime import pick_device, tune_process

RAW = PROJECT / "artifacts/raw/mnist"


def run_tutorial(recipe: params.Recipe, picked: list[int], device: torch.device, seed: int) -> tuple[float, float]:
    """Seconds and test accuracy of the loop that the tutorials of PyTorch show."""
    torch.manual_seed(seed)
    assert isinstance(recipe.optimizer, params.Sgd)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "MNIST").mkdir()
        (Path(root) / "MNIST/raw").symlink_to(RAW)
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
        print(f"tutorial: epoch {epoch + 1}, loss {running_loss / len(train_loader):.4f}", flush=True)
    seconds = time.perf_counter() - started
    model.eval()
    with torch.no_grad():
        correct = sum(
            (model(images.to(device)).argmax(1) == labels.to(device)).sum().item() for images, labels in test_loader
        )
    return seconds, correct / len(test_set)


def run_recipe(recipe: params.Recipe, device: torch.device, seed: int) -> tuple[float, float]:
    """Seconds and test accuracy, after the last epoch, of this project's loop."""
    tune_process(device)
    splits = load_splits(device)
    training = begin(recipe, device, seed, len(splits["train"]))
    started = time.perf_counter()
    for row in train.fit(training, recipe, splits["train"], splits["validation"], seed):
        print(f"article: epoch {row['epoch']}, loss {row['train_loss']:.4f}", flush=True)
    seconds = time.perf_counter() - started
    return seconds, train.assess(training.result, splits["test"], recipe.loss, device)[1]


def start_processes_by(method: str) -> None:
    set_start_method(method, force=True)


def in_fresh_process(run: Callable[..., tuple[float, float]], *arguments: object) -> tuple[float, float]:
    """What has run before would change how memory and threads behave."""
    # in a spawned process the DataLoader would spawn its workers too, which takes seconds in each epoch
    usual = (get_start_method(),)
    with ProcessPoolExecutor(1, get_context("spawn"), start_processes_by, usual) as pool:
        return pool.submit(run, *arguments).result()


def main() -> None:
    parser = ArgumentParser("python -m benchmarks.tutorial", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each, in turn (default: 3)")
    runs = parser.parse_args().runs
    knobs = params.load_params(PROJECT / "params.yaml")
    recipe, device = knobs.recipes["article"], pick_device(knobs.device)
    ids = TensorDict.load_memmap(str(PROJECT / train.NORMALIZED / "train"))["id"].tolist()
    results: dict[str, list[tuple[float, float]]] = {"tutorial": [], "article": []}
    for seed in range(1, runs + 1):
        results["tutorial"].append(in_fresh_process(run_tutorial, recipe, ids, device, seed))
        results["article"].append(in_fresh_process(run_recipe, recipe, device, seed))
    ratio = [slow[0] / fast[0] for slow, fast in zip(results["tutorial"], results["article"], strict=True)]
    rows = [
        [label, spread([run[0] for run in results[name]]), spread([100 * run[1] for run in results[name]], 2)]
        for name, label in (
            ("tutorial", "the tutorial's loop, DataLoader with 2 workers"),
            ("article", "recipe `article`"),
        )
    ]
    text = [
        f"MLP 784-128-64-10, SGD, batches of {recipe.batch_size}, {recipe.epochs} epochs of {len(ids):,} images,"
        f" seeds 1 to {runs}, in turn, each in a fresh process; median (smallest to largest). Imports and the opening"
        " of the data are outside.",
        table(["", "seconds of training", "test accuracy, %"], rows),
        f"**{median(ratio):.0f} times faster** ({min(ratio):.1f} to {max(ratio):.1f}).",
    ]
    write("tutorial", "The tutorial's loop against recipe `article`", ("torch", "torchvision"), text, results)


if __name__ == "__main__":
    main()
