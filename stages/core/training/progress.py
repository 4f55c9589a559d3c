"""Report the progress of a training run: a bar, a line for each epoch, and DVCLive's files."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stages.core.files.errors import UserError
from stages.core.files.layout import LIVE

Row = dict[str, float]  # of the history, one for each epoch


class TrainingProgress:
    """Report the epochs of one training run."""

    def __init__(self, epochs: int, steps: int, batch_size: int) -> None:
        """Take the numbers of epochs, of steps per epoch and of examples per step."""
        from dvclive.live import Live  # noqa: PLC0415  # Importing it takes most of a second.

        self.epochs, self.steps, self.examples = epochs, steps, steps * batch_size
        console = Console()
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.bar = self.progress.add_task("train", total=epochs * steps, epoch=1)
        with naming_the_place():
            self.live = Live(str(LIVE), save_dvc_exp=False, dvcyaml=False)
        self.epoch_started = time.monotonic()

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        self.live.end()

    def advance(self) -> None:
        """Move the bar by one step."""
        self.progress.advance(self.bar)

    def log(self, row: Row) -> None:
        """Log an epoch's row of the history without printing it, as for the earlier epochs of a resumed run."""
        with naming_the_place():
            for name, value in row.items():
                if name != "epoch":
                    self.live.log_metric(name, value)
            self.live.next_step()
        self.progress.update(self.bar, epoch=row["epoch"] + 1, completed=row["epoch"] * self.steps)

    def report(self, row: Row) -> None:
        """Log an epoch that has just ended, and print a line about it."""
        self.log(row)
        now = time.monotonic()
        seconds, self.epoch_started = now - self.epoch_started, now
        text = (
            f"train: epoch {row['epoch']}/{self.epochs}, loss {row['train_loss']:.4f},"
            f" validation loss {row['validation_loss']:.4f}, accuracy {row['validation_accuracy']:.2%},"
            f" {self.examples / seconds:,.0f} images/s, {seconds * (self.epochs - row['epoch']):.0f} s left"
        )
        self.progress.console.print(text, soft_wrap=True)


@contextmanager
def naming_the_place() -> Iterator[None]:
    """Name the folder that cannot be written when DVCLive, or DVC's state behind it, fails: their errors do not."""
    try:
        yield
    except sqlite3.Error as error:
        raise UserError(f"{LIVE} cannot be written: DVC's state, usually in /var/tmp/dvc: {error}") from error
    except OSError as error:
        raise UserError(f"{LIVE} cannot be written: {error.strerror or error}") from error
