"""Collect values that differ between runs: times, latency, and the metrics of the last commit."""

import json
import subprocess
import time
from contextlib import suppress
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.config.params import PARAMS, parse_params
from stages.core.deploy.onnx_model import OnnxModel
from stages.core.files import layout
from stages.core.reporting.headline import format_headline

LATENCY_RUNS = {1: 200, 256: 10}  # by batch size


def measure_latency(model: OnnxModel, inputs: NDArray[Any]) -> dict[int, float]:
    """Return the median time in milliseconds that ONNX Runtime takes for a batch, by batch size."""
    latency = {}
    for size, runs in LATENCY_RUNS.items():
        batch = np.resize(inputs, (size, *inputs.shape[1:]))
        model.run(batch)
        seconds = []
        for _ in range(runs):
            started = time.perf_counter()
            model.run(batch)
            seconds.append(time.perf_counter() - started)
        latency[size] = median(seconds) * 1000
    return latency


def last_commit(dataset: str) -> tuple[str, dict[str, Any]]:
    """Return the short name of git's HEAD and the metrics in it; empty if it has none for this data set."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout

    metrics: dict[str, Any] = {}
    with suppress(OSError, subprocess.CalledProcessError, ValueError):
        if parse_params(git("show", f"HEAD:./{PARAMS}"), PARAMS).dataset != dataset:
            return "", {}
        for path in (layout.PARITY_METRICS, layout.METRICS):
            metrics |= json.loads(git("show", f"HEAD:./{path.as_posix()}"))
        return git("rev-parse", "--short", "HEAD").strip(), metrics
    return "", {}


def local_facts(model: OnnxModel, inputs: NDArray[Any], dataset: str) -> dict[str, Any]:
    """Return the texts that differ between runs, by their places in the page, and the model that they belong to."""
    commit, metrics = last_commit(dataset)
    facts = {f"commit.{name}": text for name, text in format_headline(metrics).items()}
    if facts:
        facts["commit"] = commit
    for outputs in (layout.download_outputs(dataset), *layout.TIMED):
        if (seconds := outputs.read_time()) is not None:
            facts[f"seconds.{outputs.stage}"] = f"{seconds:.1f} s"
    for size, milliseconds in measure_latency(model, inputs).items():
        facts[f"latency.{size}"] = f"{milliseconds:.3g} ms"
        facts[f"throughput.{size}"] = f"{size / milliseconds * 1000:,.0f}"
    return {"model": model.sha256, "facts": facts}
