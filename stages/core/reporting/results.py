"""Print the metrics of the last run as a table; `make run` ends with `python -m stages.core.reporting.results`."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages.core.files import layout
from stages.core.files.errors import UserError, report_errors


def read(path: Path, *names: str) -> list[float]:
    """Return the named figures of a JSON file."""
    try:
        figures = json.loads(path.read_text())
        return [figures[name] for name in names]
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(
            f"{path} does not hold the figures of this pipeline ({error}); `dvc repro --force` writes them"
        ) from None


def tabulate() -> Table:
    """Return the table of the last run's metrics."""
    accuracy, recall, f1 = read(layout.METRICS, "accuracy", "recall", "f1")
    low, high = read(layout.DETAILS, "accuracy_low", "accuracy_high")
    agreement, images, difference = read(layout.PARITY_DETAILS, "label_agreement", "num_images", "max_abs_diff")
    table = Table("", "", show_header=False)
    table.add_row("accuracy", f"{accuracy:.2%}  (95%: {low:.2%} to {high:.2%})")
    table.add_row("recall", f"{recall:.4f}")
    table.add_row("F1", f"{f1:.4f}")
    table.add_row("parity", f"{agreement:.2%} of {images:,} labels equal, logits within {difference:.1e}")
    if layout.PAGE.exists():
        table.add_row("report", str(layout.PAGE))
    return table


def main() -> None:
    missing = [str(path) for path in (layout.METRICS, layout.DETAILS, layout.PARITY_DETAILS) if not path.exists()]
    if missing:
        raise UserError(f"{', '.join(missing)} not found: run the pipeline first, with `make run`")
    Console().print(tabulate())


if __name__ == "__main__":
    with report_errors("results"):
        main()
