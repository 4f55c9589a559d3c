"""How the threads of OpenMP (GNU's, in PyTorch) wait for each other, which is settled once, before torch is loaded.

Threads that spin for long let small networks train up to twice as fast. But where other processes want the same cores,
the spinning takes them from the threads that are waited for: two trainings that both do it take five times as long. So
a process that finds another one at work when it starts spins for a short time.
"""

import os
import signal
import sys
import time
from pathlib import Path

# While Python locates the module of `python -m stages.STAGE`, argv[0] is "-m" and this package is imported. Importing
# the rest takes seconds, in which ctrl-C must not end in a traceback; afterwards `reported` handles it.
# The handler is Python's: polars, once imported, swallows a SIGINT that would have had its default action.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

SHORT, LONG = "1001", "30001"  # turns of a loop; odd, to tell them from a user's value
PATIENCE = 0.05  # seconds in which what has just started this process may come to rest
LOAD = Path("/proc/loadavg")  # proc(5): the fourth field says how many threads run or want to, this one among them


def machine_is_idle() -> bool:
    """Whether at some moment nothing runs but this process, which looks without a rest: another such one sees it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if LOAD.read_text().split()[3].startswith("1/"):
            return True
    return False


if LOAD.exists() and os.environ.get("GOMP_SPINCOUNT", SHORT) in (SHORT, LONG):  # inherited is what a parent decided
    os.environ["GOMP_SPINCOUNT"] = LONG if machine_is_idle() else SHORT
