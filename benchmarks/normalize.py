"""Compare stages `download` and `normalize` with Pillow alone: `python -m benchmarks.normalize` writes normalize.md.

The pictures are made up: smooth noise with shapes, as JPEG files of 500x375 pixels that are as large as photos. They
lie in the page cache, so no disk is measured. Both stages run as processes, as DVC runs them.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.report import PROJECT, table, write
from stages.core.config.params import PARAMS, override_params
from stages.core.files.layout import DATA, NORMALIZED

WIDTH, HEIGHT = 500, 375
FITTED = (64, 48)  # what stage `normalize` makes of them, besides black borders
COUNTS = (5_000, 20_000)
CLASSES = 10
QUALITY = 90
METHODS = {
    "download": "stage `download`",
    "normalize": "stage `normalize`",
    "pillow_draft": "Pillow alone, with `draft`",
    "pillow": "Pillow alone, without",
}
BASES = 200  # distinct pictures; all others are shifted by a distance of their own, which changes every block of a JPEG
RUN_STAGE = """
import json, pathlib, re, resource, runpy, sys, threading, time
from stages.core.examples import likeness
search, searched, own = likeness.find_alike, 0, 0
def timed(*given):
    global searched
    started = time.process_time()
    found = search(*given)
    searched = time.process_time() - started
    return found
def watch():
    global own
    while status.exists():
        own = max(own, int(re.search(r"RssAnon:\\s*(\\d+)", status.read_text())[1]))
        time.sleep(0.1)
likeness.find_alike, status = timed, pathlib.Path("/proc/self/status")
threading.Thread(target=watch, daemon=True).start()
runpy.run_module(sys.argv[1], run_name="__main__")
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, searched, used.ru_maxrss, own]))
"""


class Cost(NamedTuple):
    """Hold what one run took."""

    seconds: float
    cpu_seconds: float  # of all threads
    search_cpu_seconds: float = 0.0  # of the search for near duplicates
    peak_mb: float = 0.0  # RSS
    own_mb: float = 0.0  # RSS without pages of mapped files, which the kernel takes back when others need memory; Linux


def draw(seed: int) -> NDArray[np.uint8]:
    """Return a picture of smooth noise, fine grain and shapes."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(256, size=(12, 16, 3), dtype=np.uint8))
    picture = coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(picture)
    for left, top, width, height, *color in generator.integers(0, 256, size=(12, 7)).tolist():
        canvas.ellipse((left, top, left + width, top + height), tuple(color))
    grain = generator.integers(0, 40, size=(HEIGHT, WIDTH, 1), dtype=np.uint8)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(1))) // 4 * 3 + grain


def make_folder(folder: Path, count: int) -> float:
    """Write `count` pictures into the folders of the classes, and return their mean size in bytes."""
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
    bases = [draw(seed) for seed in range(min(BASES, count))]
    paths = [folder / str(number % CLASSES) / f"{number}.jpg" for number in range(count)]

    def write_picture(number: int) -> None:
        shift = np.random.default_rng(number).integers((HEIGHT, WIDTH))
        shifted = np.roll(bases[number % BASES], shift, (0, 1))
        Image.fromarray(shifted).save(paths[number], "JPEG", quality=QUALITY)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(write_picture, range(count)))
    return sum(path.stat().st_size for path in paths) / count


def run_stage(folder: Path, stage: str) -> Cost:
    """Run a stage as a process, imports included."""
    started = time.perf_counter()
    command = [sys.executable, "-c", RUN_STAGE, f"stages.{stage}"]
    output = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    cpu, searched, peak, own = json.loads(output.splitlines()[-1])
    peak_mb = peak * (1 if sys.platform == "darwin" else 1024) / 1e6
    return Cost(time.perf_counter() - started, cpu, searched, peak_mb, own * 1024 / 1e6)


def run_pillow(paths: list[Path], *, draft: bool) -> Cost:
    """Open, decode and resize each picture with nothing but Pillow, in a thread per core."""

    def read(path: Path) -> None:
        with Image.open(path) as picture:
            if draft:
                picture.draft("RGB", (2 * FITTED[0], 2 * FITTED[1]))
            picture.convert("RGB").resize(FITTED, Image.Resampling.BOX)

    started, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(read, paths))
    return Cost(time.perf_counter() - started, time.process_time() - cpu)


def measure(folder: Path, runs: int) -> dict[str, list[Cost]]:
    """Return the cost of each run of each method; the methods take turns."""
    paths = sorted((folder / DATA / "photos").rglob("*.jpg"))
    found: dict[str, list[Cost]] = {name: [] for name in METHODS}
    for _ in range(runs):
        shutil.rmtree(folder / NORMALIZED, ignore_errors=True)  # Otherwise, nothing would be decoded again.
        found["download"].append(run_stage(folder, "download"))
        found["normalize"].append(run_stage(folder, "normalize"))
        found["pillow_draft"].append(run_pillow(paths, draft=True))
        found["pillow"].append(run_pillow(paths, draft=False))
        print({name: costs[-1] for name, costs in found.items()}, flush=True)
    return found


def report(results: dict[int, dict[str, list[Cost]]], size: float) -> None:
    rows = []
    for count, found in results.items():
        middle = {name: Cost(*map(median, zip(*costs, strict=True))) for name, costs in found.items()}
        for name, cost in middle.items():
            peak, own = (max(getattr(run, field) for run in found[name]) for field in ("peak_mb", "own_mb"))
            rows.append([
                f"{count:,}",
                METHODS[name],
                f"{count / cost.seconds:,.0f}",
                f"{1e3 * cost.cpu_seconds / count:.2f}",
                f"{middle['pillow_draft'].seconds / cost.seconds:.0%}",
                f"{middle['pillow_draft'].cpu_seconds / cost.cpu_seconds:.0%}",
                f"{cost.search_cpu_seconds / cost.cpu_seconds:.0%}" if name == "normalize" else "",
                f"{peak:,.0f}" if peak else "",
                f"{own:,.0f}" if own else "",
                str(len(found[name])),
            ])  # fmt: skip
    head = ["pictures", "method", "pictures/s", "CPU ms per picture", "speed, of Pillow with `draft`",
            "the same by CPU time", "near duplicates' share of CPU time", "peak memory, MB",
            "without mapped files, MB", "runs"]  # fmt: skip
    text = [
        f"JPEG files of {WIDTH}x{HEIGHT} pixels and {size / 1e3:.0f} kB, in memory. Stage `download` reads, hashes and"
        " inspects each file. Stage `normalize` reads and hashes it again, decodes it, fits it into 64x64 pixels, and"
        " describes, divides, compares and writes the inputs. Both are timed as whole processes, including imports."
        " Pillow alone opens, decodes and resizes the same files with the same filter, in a thread per core, and keeps"
        " nothing. Times are medians of the runs, in which the methods took turns; memory is the largest. Stage"
        " `normalize` maps the file of all inputs into its memory; the kernel frees these pages when it needs memory.",
        "Other processes kept the cores busy at the same time, so the pictures per second are lower than on an idle"
        " machine; the CPU time depends little on that.",
        table(head, rows),
    ]
    figures = {
        count: {name: [cost._asdict() for cost in costs] for name, costs in found.items()}
        for count, found in results.items()
    }
    write("normalize", "Pictures per second", ("pillow", "numpy", "polars"), text, {"bytes": size, "pictures": figures})


def main() -> None:
    parser = ArgumentParser("python -m benchmarks.normalize", description=__doc__)
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS, help=f"pictures (default: {COUNTS})")
    parser.add_argument("--runs", type=int, default=3, help="runs of each method (default: 3)")
    parser.add_argument("--scratch", type=Path, help="folder for 2.5 GB of pictures (default: that of the system)")
    arguments = parser.parse_args()
    results = {}
    for count in arguments.counts:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            folder = Path(scratch)
            shutil.copytree(PROJECT / "stages", folder / "stages")
            shutil.copy(PROJECT / PARAMS, folder)
            override_params(folder / PARAMS, {"dataset": "photos"})
            size = make_folder(folder / DATA / "photos", count)
            results[count] = measure(folder, arguments.runs)
    report(results, size)


if __name__ == "__main__":
    main()
