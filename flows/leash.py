"""Run a command that ends together with the process that started it: `python -m flows.leash COMMAND ...`.

Standard input is the leash: a pipe whose other end the starting process holds. When that process closes it, or dies for
any reason, the command and all its descendants are terminated, and killed if they do not end in time. Exits with the
command's status.
"""

import os
import subprocess
import sys
from contextlib import suppress
from threading import Event, Thread

import psutil

GRACE_S = 5  # seconds between termination and kill


def main() -> None:
    released = Event()
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def exit_with_command() -> None:
        status = command.wait()
        if not released.is_set():
            os._exit(status if status >= 0 else 128 - status)

    Thread(target=exit_with_command, daemon=True).start()
    while os.read(sys.stdin.fileno(), 1):
        pass
    released.set()
    # List them before any of them ends, because a process that outlives its parent is no longer a descendant.
    descendants = psutil.Process().children(recursive=True)
    for process in descendants:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(descendants, timeout=GRACE_S)
    for process in {*alive, *psutil.Process().children(recursive=True)}:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(137)


if __name__ == "__main__":
    main()
