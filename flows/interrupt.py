"""Ctrl-C for programs whose processes all hang on a leash: they may end at any moment and leave nothing behind."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def exit_on_interrupt() -> None:
    """Let ctrl-C end the process at once and without a traceback; called before the imports, which take seconds.

    What a shell has started in the background keeps ignoring ctrl-C. SIG_DFL would not do: polars, once imported, hands
    the signal on to handlers only.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on the first ctrl-C in the block; the next one, or one after it, is the end at once."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        exit_on_interrupt()


def interrupt(_number: int, _frame: FrameType | None) -> None:
    exit_on_interrupt()
    raise KeyboardInterrupt
