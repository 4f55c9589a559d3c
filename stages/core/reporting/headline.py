"""Format the metrics by which runs are compared."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.core.files import layout

# The metrics that the page compares with those of the baseline and the last commit: a name and a format for each.
HEADLINE = {
    "accuracy": ("Accuracy", ".2%"),
    "top5_accuracy": ("Top-5 accuracy", ".2%"),  # only with more than five classes
    "recall": ("Recall (macro average; the balanced accuracy)", ".4f"),
    "precision": ("Precision (macro average)", ".4f"),
    "f1": ("F1 (macro average)", ".4f"),
    "loss": ("Cross-entropy", ".4f"),
    "calibration_error": ("Calibration error", ".2%"),
    "coverage": ("Coverage: share of predictions that are sure", ".2%"),
    "risk": ("Risk: share of sure predictions that are wrong", ".2%"),
    "different_labels": ("Parity: labels that differ", ",d"),
    "tolerance_used": ("Parity: largest difference, as a share of the tolerance", ".1%"),
}


def format_headline(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the formatted headline figures; the metrics of an older run may lack some."""
    texts = {}
    for name, (_, spec) in HEADLINE.items():
        with suppress(KeyError, TypeError, ValueError):
            texts[name] = format(metrics[name], spec)
    return texts


def read_baseline(folder: Path) -> dict[str, Any]:
    """Return the metrics that are kept for comparison, or an empty dictionary."""
    metrics: dict[str, Any] = {}
    for path in (layout.PARITY_METRICS, layout.METRICS):
        with suppress(OSError, ValueError, TypeError):
            metrics |= json.loads((folder / path.name).read_text(encoding="utf-8"))
    return metrics
