"""Handle ctrl-C at any moment of a program, from its first import to its last line."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def exit_on_interrupt() -> None:
    """Let ctrl-C end the process at once and without a traceback.

    A process that a shell started in the background keeps ignoring ctrl-C. SIG_DFL is not enough: polars, once
    imported, passes the signal on only to handlers.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))


def exit_on_interrupt_while_importing() -> None:
    """Let ctrl-C end `python -m PACKAGE.MODULE` at once during its imports, which take seconds; PACKAGE calls this.

    `report_errors` sets another handler later. A program that imports the package as a library keeps its own.
    """
    if sys.argv[0] == "-m":  # This is its value while Python locates the module.
        exit_on_interrupt()


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on the first ctrl-C in the block; a later one, or one after it, ends the process.

    Use it for programs that start all of their processes on a leash: they may end at any moment and leave none behind.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, raise_keyboard_interrupt)
    try:
        yield
    finally:
        exit_on_interrupt()


def raise_keyboard_interrupt(_number: int, _frame: FrameType | None) -> None:
    exit_on_interrupt()
    raise KeyboardInterrupt
