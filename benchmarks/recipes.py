"""Run every recipe through the whole pipeline: `python -m benchmarks.recipes` writes benchmarks/recipes.md.

The stages run as processes, as DVC runs them, in a temporary folder. The figures come from the metrics that they write.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any

import onnxruntime
import torch

from benchmarks.report import PROJECT, path_of, revision, table, today, write
from stages.core.config.params import PARAMS, load_params, override_params
from stages.core.files.layout import MANIFEST, METRICS, NORMALIZED, ONNX, PARITY_DETAILS
from stages.core.nets.manifest import read_manifest

STAGES = ("train", "evaluate", "export", "parity")


@contextmanager
def ready_to_train() -> Iterator[Path]:
    """Yield a temporary folder with the project's code, params and data in which to run stages."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(PROJECT / "stages", folder / "stages")
        shutil.copy(PROJECT / PARAMS, folder / PARAMS)
        (folder / NORMALIZED).parent.mkdir()
        (folder / NORMALIZED).symlink_to(PROJECT / NORMALIZED)
        yield folder


def run_pipeline(folder: Path, recipe: str, seed: int) -> dict[str, Any]:
    """Train, evaluate, export and verify `recipe` in `folder`, and return the figures."""
    override_params(folder / PARAMS, {"recipe": recipe, "seed": seed})
    figures: dict[str, Any] = {"seed": seed}
    for stage in STAGES:
        started, output = time.perf_counter(), []
        command = [sys.executable, "-m", f"stages.{stage}"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for line in process.stdout:
                print(line, end="", flush=True)
                output.append(line)
        assert process.returncode == 0, f"{stage} of {recipe} failed"
        figures[f"{stage}_seconds"] = time.perf_counter() - started
        if stage == "train":
            rates = [float(rate.replace(",", "")) for rate in re.findall(r"([\d,]+) images/s", "".join(output))]
            images = float(re.findall(r"([\d,]+) images on", output[0])[0].replace(",", ""))
            figures |= {"epoch_seconds": images / median(rates), "epochs": len(rates)}
    evaluation = json.loads((folder / METRICS).read_text())
    manifest = read_manifest(folder / MANIFEST)
    return figures | {
        "accuracy": evaluation["accuracy"],
        "f1": evaluation["f1"],
        "kept_epoch": manifest.epoch,
        "parameters": manifest.weights,
        "max_abs_diff": json.loads((folder / PARITY_DETAILS).read_text())["max_abs_diff"],
        "onnx_bytes": (folder / ONNX).stat().st_size,
        "latency_us": latency(folder / ONNX),
    }


def latency(onnx: Path, runs: int = 2000) -> float:
    """Return the median number of microseconds for one image on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    image = {"image": torch.randint(256, (1, 1, 28, 28), dtype=torch.uint8).numpy()}
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        session.run(None, image)
        times.append(time.perf_counter() - started)
    return 1e6 * median(times)


def main() -> None:
    recipes = load_params(PROJECT / PARAMS).recipes
    known = list(recipes)
    parser = ArgumentParser("python -m benchmarks.recipes", description=__doc__)
    parser.add_argument("recipes", nargs="*", default=known, help="recipes to run (default: all)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds for each recipe (default: 1)")
    parser.add_argument("--accurate-seeds", type=int, default=3, help="the same for `accurate` and `mlp` (default: 3)")
    arguments = parser.parse_args()
    kept = path_of("recipes", "json")
    results: dict[str, list[dict[str, Any]]] = json.loads(kept.read_text())["results"] if kept.exists() else {}
    settings = {name: recipe.model_dump() for name, recipe in recipes.items()}
    results = {name: runs for name, runs in results.items() if settings.get(name) == runs[0]["settings"]}
    with ready_to_train() as folder:
        for recipe in arguments.recipes:
            seeds = arguments.accurate_seeds if recipe in ("accurate", "mlp") else arguments.seeds
            measured = {"settings": settings[recipe], "revision": revision(), "date": today()}
            results[recipe] = [measured | run_pipeline(folder, recipe, seed) for seed in range(1, seeds + 1)]
            report({name: results[name] for name in known if name in results})


def report(results: dict[str, list[dict[str, Any]]]) -> None:
    rows = []
    for name, runs in results.items():
        accuracies = [100 * run["accuracy"] for run in runs]
        several = f" ({min(accuracies):.2f} to {max(accuracies):.2f})" if len(runs) > 1 else ""
        rows.append([
            f"`{name}`",
            f"{runs[0]['parameters']:,}",
            str(runs[0]["epochs"]),
            f"{median(run['epoch_seconds'] for run in runs):.1f}",
            f"{median(run['train_seconds'] for run in runs):.0f}",
            str(len(runs)),
            f"{mean(accuracies):.2f}{several}",
            f"{mean(run['f1'] for run in runs):.4f}",
            f"{max(run['max_abs_diff'] for run in runs):.0e}",
            f"{runs[0]['onnx_bytes'] / 1e3:,.0f}",
            f"{median(run['latency_us'] for run in runs):.0f}",
            f"{runs[0]['date']}, {runs[0]['revision']}",
        ])  # fmt: skip
    head = ["recipe", "parameters", "epochs", "s per epoch", "stage `train`, s", "seeds", "test accuracy, %", "F1",
            "parity: largest difference", "ONNX, kB", "batch 1, us", "measured"]  # fmt: skip
    text = [
        "For each row, stages `train`, `evaluate`, `export` and `parity` ran as processes on MNIST, with 55,000"
        " training images, and with 5,000 validation images to choose the epoch. The figures are means over the seeds,"
        " the times medians. Seconds per epoch include validation; those of the stage also include imports and checks."
        " The latency is that of ONNX Runtime for one image on one thread. The last column has the date and the"
        " revision of the measurement; a row is kept for as long as its recipe does not change.",
        table(head, rows),
    ]
    write("recipes", "Every recipe", ("torch", "onnxruntime"), text, results)


if __name__ == "__main__":
    main()
