"""Compare the tutorial's training loop with recipe `article`: `python -m benchmarks.tutorial` writes tutorial.md.

Both use the same images, network, initialization, optimizer, batch size and epochs; they run in turn, each in a fresh
process. The time runs from the first batch to the end of the last epoch. It includes the recipe's validation, but not
imports and opening the data.
"""

import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from benchmarks.report import PROJECT, spread, table, write
from benchmarks.training import begin, in_turn, load_data, project_params, run_epochs
from stages.core.data.splits import read_dataset
from stages.core.files.layout import raw_folder
from stages.core.machine.device import pick_device
from stages.core.nets.registry import build_model
from stages.core.training.config import Recipe, Sgd
from stages.core.training.loop import evaluate_loss


def run_tutorial(recipe: Recipe, device: torch.device, seed: int) -> tuple[float, float]:
    """Return the seconds and the test accuracy of the loop that PyTorch's tutorials show."""
    with chdir(PROJECT):
        dataset = read_dataset()
    torch.manual_seed(seed)
    assert isinstance(recipe.optimizer, Sgd)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "MNIST").mkdir()
        (Path(root) / "MNIST/raw").symlink_to(PROJECT / raw_folder("mnist"))
        picked = dataset.examples.filter(split="train")["id"].to_list()  # These are indices in the training file.
        train_set = Subset(datasets.MNIST(root, train=True, transform=transform), picked)
        test_set = datasets.MNIST(root, train=False, transform=transform)
    train_loader = DataLoader(train_set, batch_size=recipe.batch_size, shuffle=True, num_workers=2)
    test_loader = DataLoader(test_set, batch_size=1000, num_workers=2)
    # The loader normalizes the images, so the model's first layer, which does the same, is left out.
    model = build_model(recipe.model, dataset.spec).get_submodule("network").to(device)
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
    """Return the seconds of this project's loop and the test accuracy after the last epoch."""
    data = load_data(device)
    state = begin(recipe, data, device, seed)
    started = time.perf_counter()
    for row in run_epochs(state, recipe, data, seed):
        print(f"article: epoch {row['epoch']}, loss {row['train_loss']:.4f}", file=sys.stderr)
    seconds = time.perf_counter() - started
    return seconds, evaluate_loss(state.best_model, data.test, recipe.loss, device)[1]


LOOPS = {"tutorial": run_tutorial, "article": run_recipe}


def run_once(name: str, seed: int) -> tuple[float, float]:
    """Return the seconds of training and the test accuracy of one of the loops."""
    params = project_params()
    return LOOPS[name](params.recipes["article"], pick_device(params.machine.device), seed)


def main() -> None:
    results = in_turn("benchmarks.tutorial", __doc__, run_once, [*LOOPS], runs=3)
    recipe, runs = project_params().recipes["article"], len(results["tutorial"])
    ratio = [slow[0] / fast[0] for slow, fast in zip(results["tutorial"], results["article"], strict=True)]
    rows = [
        [label, spread([run[0] for run in results[name]]), spread([100 * run[1] for run in results[name]], 2)]
        for name, label in (
            ("tutorial", "the tutorial's loop, DataLoader with 2 workers"),
            ("article", "recipe `article`"),
        )
    ]
    images = load_data(torch.device("cpu")).train.size
    text = [
        f"MLP 784-128-64-10, SGD, batches of {recipe.batch_size}, {recipe.epochs} epochs of {images:,} images, seeds 1"
        f" to {runs}, in turn, each in a fresh process; median (smallest to largest). The time does not include imports"
        " and opening the data.",
        table(["", "training, s", "test accuracy, %"], rows),
        f"**{median(ratio):.0f} times faster** ({min(ratio):.1f} to {max(ratio):.1f}).",
    ]
    write("tutorial", "The tutorial's loop compared with recipe `article`", ("torch", "torchvision"), text, results)


if __name__ == "__main__":
    main()
