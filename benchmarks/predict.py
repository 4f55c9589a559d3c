"""Measure predictions from files: `python -m benchmarks.predict` writes predict.md.

`python -m flows.predict` is timed as a whole process, on IDX files of several sizes that repeat MNIST's test images,
and on a folder of the same images as PNG files. For comparison, the PNG files are also only decoded and fitted, in one
thread per core.
"""

import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.report import PROJECT, table, write
from stages.core.data.idx import read_raw, write_idx
from stages.core.examples.image import open_picture
from stages.core.examples.spec import Opening
from stages.core.files.layout import ONNX, raw_folder

COUNTS = (10_000, 100_000, 1_000_000)
PNGS = 10_000


def predict(given: Path, output: Path) -> tuple[float, int]:
    """Return the command's seconds as a process, and its peak memory in bytes (RSS, sampled 20 times a second)."""
    started, peak = time.perf_counter(), 0
    options = ["--model", str(PROJECT / ONNX), "--output", str(output)]
    command = [sys.executable, "-m", "flows.predict", str(given), *options]
    with psutil.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                peak = max(peak, process.memory_info().rss)
            time.sleep(0.05)
    assert process.returncode == 0
    return time.perf_counter() - started, peak


def decode_only(folder: Path) -> float:
    """Return the seconds that it takes to decode and fit every PNG."""

    opening = Opening(color="grey", resize="fit", centre_ink=True, max_pixels=10**6)

    def read(path: Path) -> None:
        open_picture(path.read_bytes(), path.name, (1, 28, 28), opening)

    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(read, folder.iterdir()))
    return time.perf_counter() - started


def main() -> None:
    parser = ArgumentParser("python -m benchmarks.predict", description=__doc__)
    parser.add_argument(
        "--counts", type=int, nargs="*", default=COUNTS, help=f"images per IDX file (default: {COUNTS})"
    )
    counts = parser.parse_args().counts
    images_NHW = read_raw(PROJECT / raw_folder("mnist"), "test").inputs[:, 0]
    rows, results = [], []

    def add(what: str, count: int, seconds: float, peak: int | None) -> None:
        results.append({"what": what, "images": count, "seconds": seconds, "peak_bytes": peak})
        memory = f"{peak / 1e6:,.0f}" if peak else ""
        rows.append([what, f"{count:,}", f"{seconds:.1f}", f"{count / seconds:,.0f}", memory])
        print(rows[-1], flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for count in counts:
            write_idx(folder / f"{count}-idx3-ubyte", images_NHW[np.arange(count) % len(images_NHW)])
            add("IDX", count, *predict(folder / f"{count}-idx3-ubyte", folder / f"out-{count}"))
        (folder / "png").mkdir()
        for number, image_HW in enumerate(images_NHW[:PNGS]):
            Image.fromarray(image_HW).save(folder / "png" / f"{number:05}.png")
        add("PNG", PNGS, *predict(folder / "png", folder / "out-png"))
        add("PNG, decoded and fitted only", PNGS, decode_only(folder / "png"), None)
    text = [
        "The whole process, including imports and writing both tables; one run per row, with the last run's model.",
        table(["input", "images", "seconds", "images/s", "peak memory, MB"], rows),
    ]
    write("predict", "Predictions from files", ("onnxruntime", "polars", "pillow"), text, results)


if __name__ == "__main__":
    main()
