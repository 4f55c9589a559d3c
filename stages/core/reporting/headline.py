"""Format the metrics by which runs are compared."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.core.files import layout

# The metrics that the page compares with the baseline's and the last commit's: a name and a format for each.
HEADLINE = {
    "accuracy": ("Accuracy", ".2%"),
    "recall": ("Recall, mean of the classes", ".4f"),
    "precision": ("Precision, mean of the classes", ".4f"),
    "f1": ("F1, mean of the classes", ".4f"),
    "loss": ("Cross-entropy", ".4f"),
    "calibration_error": ("Calibration error", ".2%"),
    "coverage": ("Coverage: predictions that are sure", ".2%"),
    "risk": ("Risk: wrong ones among the sure", ".2%"),
    "different_labels": ("Parity: labels that differ", ",d"),
    "tolerance_used": ("Parity: largest difference, of what is allowed", ".1%"),
}


def format_headline(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of the headline figures that are among the metrics; those of an older run may lack some."""
    texts = {}
    for name, (_, spec) in HEADLINE.items():
        with suppress(KeyError, TypeError, ValueError):
            texts[name] = format(metrics[name], spec)
    return texts


def read_baseline(folder: Path) -> dict[str, Any]:
    """Return the metrics that are kept for comparison; empty if there are none."""
    metrics: dict[str, Any] = {}
    for path in (layout.PARITY_METRICS, layout.METRICS):
        with suppress(OSError, ValueError, TypeError):
            metrics |= json.loads((folder / path.name).read_text(encoding="utf-8"))
    return metrics
