"""Test the table of results that ends a run."""

import json
from pathlib import Path

import pytest

from stages.core.files import layout
from stages.core.files.errors import UserError
from stages.core.reporting import results

EVALUATION = {"accuracy": 0.99456, "precision": 0.25, "recall": 0.99432, "f1": 0.99418}
INTERVAL = {"accuracy_low": 0.9929, "accuracy_high": 0.99583}
PARITY = {"max_abs_diff": 1.53e-5, "label_agreement": 0.9999, "num_images": 10_000}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def cells(text: str) -> list[list[str]]:
    """Return the cells of each row of a printed table."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[0] == "│"]


EXPECTED = [
    ["accuracy", "99.46%  (95%: 99.29% to 99.58%)"],
    ["recall", "0.9943"],
    ["F1", "0.9942"],
    ["parity", "99.99% of 10,000 labels equal, logits within 1.5e-05"],
]


def test_main_prints_the_last_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(layout.METRICS, EVALUATION)
    write(layout.DETAILS, INTERVAL)
    write(layout.PARITY_DETAILS, PARITY)
    results.main()
    assert cells(capsys.readouterr().out) == EXPECTED
    write(layout.PAGE, "")
    results.main()
    assert cells(capsys.readouterr().out) == [*EXPECTED, ["report", "artifacts/report/index.html"]]


def test_missing_metrics_are_named(folder: Path) -> None:
    paths = r"artifacts/metrics/evaluation\.json, artifacts/details/evaluation\.json, artifacts/details/parity\.json"
    with pytest.raises(UserError, match=f"^{paths} not found: run the pipeline first"):
        results.main()
    write(layout.METRICS, EVALUATION)
    write(layout.DETAILS, INTERVAL)
    with pytest.raises(UserError, match=r"^artifacts/details/parity\.json not found: .* with `make run`$"):
        results.main()


@pytest.mark.parametrize("content", ["<<<<<<< HEAD\n{}\n", "{}"], ids=["merge conflict", "no keys"])
def test_damaged_metrics_are_named(folder: Path, content: str) -> None:
    write(layout.METRICS, EVALUATION)
    write(layout.DETAILS, INTERVAL)
    write(layout.PARITY_DETAILS, {})
    layout.PARITY_DETAILS.write_text(content)
    with pytest.raises(UserError, match=r"artifacts/details/parity\.json"):
        results.main()
