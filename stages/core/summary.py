"""The table that ends `make run`: `python -m stages.core.summary` prints the metrics of the last run."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages.core.errors import UserError, reported

EVALUATION = Path("artifacts/metrics/evaluation.json")
PARITY = Path("artifacts/metrics/parity.json")


def tabulate(evaluation: dict[str, float], parity: dict[str, float]) -> Table:
    table = Table("", "", show_header=False)
    interval = f"{evaluation['accuracy_low']:.2%} to {evaluation['accuracy_high']:.2%}"
    table.add_row("accuracy", f"{evaluation['accuracy']:.2%}  (95 %: {interval})")
    table.add_row("recall", f"{evaluation['recall']:.4f}")
    table.add_row("F1", f"{evaluation['f1']:.4f}")
    table.add_row(
        "parity",
        f"{parity['label_agreement']:.2%} of {parity['num_images']:,} labels equal,"
        f" logits within {parity['max_abs_diff']:.1e}",
    )
    return table


def main() -> None:
    missing = [str(path) for path in (EVALUATION, PARITY) if not path.exists()]
    if missing:
        raise UserError(f"{' and '.join(missing)} not found: run the pipeline first, with `make run`")
    Console().print(tabulate(*(json.loads(path.read_text()) for path in (EVALUATION, PARITY))))


if __name__ == "__main__":
    with reported("summary"):
        main()
