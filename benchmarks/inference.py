"""Compare ONNX Runtime with PyTorch for the exported function: `python -m benchmarks.inference` writes inference.md.

The function maps raw pixels to logits and probabilities, on the CPU. With batches of 1, it measures the median and the
99th percentile of single calls, with batches of 256 the images per second. The contenders take turns in every round, in
one process for each number of threads.
"""

import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch

from benchmarks.report import PROJECT, table, write
from stages.core.config.params import PARAMS, load_params
from stages.core.examples.spec import Opening, Spec
from stages.core.nets.checkpoint import build_calibrated
from stages.core.nets.manifest import Manifest
from stages.export import WithProbabilities, to_onnx

RECIPES = ("article", "convnet")
ROUNDS = 5


def contenders(recipe: str, batch: int, threads: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return calls that compute one batch, by name. The weights are random, because they do not affect the time."""
    knobs = load_params(PROJECT / PARAMS)
    torch.manual_seed(1)
    settings, classes = knobs.recipes[recipe], [*"0123456789"]
    opening = Opening(color="grey", resize="fit", centre_ink=True, max_pixels=10**6)
    spec = Spec(
        kind="image", shape=(1, 28, 28), dtype="uint8", classes=classes, mean=(0.5,), std=(0.5,), opening=opening
    )
    manifest = Manifest(
        format=5, recipe=recipe, settings=settings, dataset="mnist", spec=spec, data_sha256="0" * 64,
        environment="nothing", epoch=1, weights=0, temperature=1.0, unsure_below=0.5, unsure_by="risk",
    )  # fmt: skip
    model = build_calibrated(manifest).eval()
    path = folder / f"{recipe}.onnx"
    path.write_bytes(to_onnx(model, manifest, knobs.export.opset).SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    pixels = np.random.default_rng(1).integers(256, size=(batch, 1, 28, 28), dtype=np.uint8)
    binding = session.io_binding()
    binding.bind_ortvalue_input("image", onnxruntime.OrtValue.ortvalue_from_numpy(pixels))
    for name in ("logits", "probabilities"):
        output = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((batch, len(classes)), np.float32))
        binding.bind_ortvalue_output(name, output)
    eager, tensor = WithProbabilities(model).eval(), torch.from_numpy(pixels)
    compiled = torch.compile(WithProbabilities(model).eval())

    def run_torch(module: Callable[[torch.Tensor], object]) -> Callable[[], object]:
        def call() -> object:
            with torch.inference_mode():
                return module(tensor)

        return call

    return {
        "ONNX Runtime": lambda: session.run(None, {"image": pixels}),
        "ONNX Runtime, IO binding": lambda: session.run_with_iobinding(binding),
        "PyTorch eager": run_torch(eager),
        "torch.compile": run_torch(compiled),
    }


def measure(threads: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return p50_us, p99_us and images_per_second by recipe and contender."""
    torch.set_num_threads(threads)
    results: dict[str, dict[str, dict[str, float]]] = {}
    with TemporaryDirectory() as folder:
        for recipe in RECIPES:
            times: dict[tuple[str, int], list[float]] = {}
            for batch, calls in ((1, 1000), (256, 40)):
                runners = contenders(recipe, batch, threads, Path(folder))
                for turn in range(ROUNDS + 1):
                    for name, call in runners.items():
                        for _ in range(calls):
                            started = time.perf_counter()
                            call()
                            if turn:  # The first round is the warm-up.
                                times.setdefault((name, batch), []).append(time.perf_counter() - started)
            results[recipe] = {
                name: {
                    "p50_us": 1e6 * median(times[name, 1]),
                    "p99_us": 1e6 * quantiles(times[name, 1], n=100)[98],
                    "images_per_second": 256 / median(times[name, 256]),
                }
                for name in runners
            }
    return results


def main() -> None:
    parser = ArgumentParser("python -m benchmarks.inference", description=__doc__)
    parser.add_argument(
        "--threads", type=int, help="measure in this process with this number of threads, and print the figures as JSON"
    )
    if threads := parser.parse_args().threads:
        print(json.dumps(measure(threads)))
        return
    results = {}
    for threads in (1, 2):
        command = [sys.executable, "-m", "benchmarks.inference", "--threads", str(threads)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[str(threads)] = json.loads(output.splitlines()[-1])
    rows = [
        [f"`{recipe}`", name, threads, *(f"{value:,.{1 if value < 100 else 0}f}" for value in figures.values())]
        for recipe in RECIPES
        for threads, by_recipe in results.items()
        for name, figures in by_recipe[recipe].items()
    ]
    head = ["recipe", "", "threads", "batch 1: p50, us", "p99, us", "batch 256: images/s"]
    text = [
        f"The exported function, from raw pixels to logits and probabilities, in float32. {ROUNDS} rounds of 1,000"
        " calls with one image and 40 calls with 256 images; the contenders take turns.",
        table(head, rows),
    ]
    write("inference", "ONNX Runtime compared with PyTorch", ("torch", "onnxruntime"), text, results)


if __name__ == "__main__":
    main()
