"""Write the table of a benchmark and its conditions as Markdown, and the figures as JSON, beside the module."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

PROJECT = Path(__file__).parent.parent


def today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def revision() -> str:
    return subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, text=True).strip()


def conditions(*packages: str) -> str:
    """Return one line with the machine, the versions and the revision."""
    import torch  # noqa: PLC0415  # Importing it takes seconds, and `table` does not need it.

    from stages.core.machine.device import describe_processor  # noqa: PLC0415

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    machine = f"{os.cpu_count()} cores ({describe_processor()}){gpu}"
    return f"{machine}, Python {platform.python_version()}, {versions}; revision {revision()}."


def spread(values: Sequence[float], digits: int = 1, unit: str = "") -> str:
    """Return the median, the smallest and the largest value as text."""
    cells = (f"{value:.{digits}f}" for value in (median(values), min(values), max(values)))
    return "{0}{3} ({1} to {2})".format(*cells, unit) if len(values) > 1 else f"{values[0]:.{digits}f}{unit}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def path_of(name: str, suffix: str) -> Path:
    """Return the path of a benchmark's file, whose name on a GPU is different, to keep the figures of a CPU."""
    import torch  # noqa: PLC0415  # Importing it takes seconds.

    return PROJECT / "benchmarks" / f"{name}{'-cuda' if torch.cuda.is_available() else ''}.{suffix}"


def write(name: str, title: str, packages: Sequence[str], text: Sequence[str], results: Any) -> None:
    """Write benchmarks/NAME.md and benchmarks/NAME.json, with the versions of `packages`, and print the page."""
    date, measured_on = today(), conditions(*packages)
    page = "\n\n".join([f"# {title}, {date}", measured_on, *text]) + "\n"
    path_of(name, "md").write_text(page)
    found = {"date": date, "conditions": measured_on, "results": results}
    path_of(name, "json").write_text(json.dumps(found, indent=2) + "\n")
    print(page)
