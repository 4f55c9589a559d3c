"""Run a command that ends with whoever started it: `python -m flows.leash COMMAND ...`.

Standard input is the leash: a pipe whose other end the starter holds. When the starter closes it, or dies in whatever
way, the command and all its descendants are asked to end, and soon killed. Exits with the command's status.
"""

import os
import subprocess
import sys
from contextlib import suppress
from threading import Event, Thread

import psutil

GRACE_S = 5


def main() -> None:
    let_go = Event()
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def exit_with_command() -> None:
        status = command.wait()
        if not let_go.is_set():
            os._exit(status if status >= 0 else 128 - status)

    Thread(target=exit_with_command, daemon=True).start()
    while os.read(sys.stdin.fileno(), 1):
        pass
    let_go.set()
    # listed once: who outlives its parent is no descendant any more
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
