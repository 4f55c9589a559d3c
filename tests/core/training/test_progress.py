"""Epochs are logged for DVCLive's viewers, and those that have just ended are printed."""

import json
import os
from pathlib import Path

import polars as pl
import pytest

from stages.core.files.errors import UserError
from stages.core.files.layout import LIVE
from stages.core.training.progress import Row, TrainingProgress


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_row(epoch: int) -> Row:
    losses = {"train_loss": 1 / epoch, "validation_loss": 2 / epoch}
    return {"epoch": epoch, **losses, "train_accuracy": 0.5, "validation_accuracy": 0.25, "lr": 0.1}


def test_an_epoch_that_has_ended_is_printed_and_logged(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(epochs=3, steps=2, batch_size=10) as progress:
        progress.log(make_row(1))  # That of a resumed run is not printed.
        progress.report(make_row(2))
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("train: epoch 2/3, loss 0.5000, validation loss 1.0000, accuracy 25.00%, ")
    assert " images/s, " in line
    latest = json.loads((LIVE / "metrics.json").read_text())
    assert (latest["step"], latest["train_loss"]) == (1, 0.5)
    curve = pl.read_csv(LIVE / "plots/metrics/validation_loss.tsv", separator="\t")
    assert curve["validation_loss"].to_list() == [2.0, 1.0]


def test_an_error_names_the_place_that_cannot_be_written() -> None:
    LIVE.parent.mkdir(parents=True)
    LIVE.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=f"^{LIVE} cannot be written: {os.strerror(17)}$"):
        TrainingProgress(epochs=3, steps=2, batch_size=10)
