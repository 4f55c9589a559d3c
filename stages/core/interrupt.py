"""Ctrl-C at any moment of a program, from its first import to its last line."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def exit_on_interrupt() -> None:
    """Let ctrl-C end the process at once and without a traceback.

    What a shell has started in the background keeps ignoring ctrl-C. SIG_DFL would not do: polars, once imported, hands
    the signal on to handlers only.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))


def exit_on_interrupt_while_importing() -> None:
    """Do the same for the imports of `python -m PACKAGE.MODULE`, which take seconds; PACKAGE calls it when imported.

    `reported` ends this state. A program that imports the package as a library keeps its own.
    """
    if sys.argv[0] == "-m":  # as long as Python looks for the module
        exit_on_interrupt()


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on the first ctrl-C in the block; the next one, or one after it, is the end at once.

    It is for programs whose processes all hang on a leash: they may end at any moment and leave nothing behind.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        exit_on_interrupt()


def interrupt(_number: int, _frame: FrameType | None) -> None:
    exit_on_interrupt()
    raise KeyboardInterrupt
