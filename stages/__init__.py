"""How the threads of OpenMP (GNU's, in PyTorch) wait for each other, which is settled before torch is loaded.

Threads that spin for long let small networks train up to twice as fast. But where other processes want the same cores,
the spinning takes them from the threads that are waited for: two trainings that start together then take five times as
long. So a process that finds another one at work spins for a short time.
"""

import os
import time
from pathlib import Path

SHORT, LONG = "1001", "30001"  # turns of a loop; odd, to tell them from a user's value
LOOKS = 10
LOAD = Path("/proc/loadavg")  # proc(5): the fourth field says how many threads run or want to, this one among them


def alone() -> bool:
    """Whether at some moment of the next 50 ms nothing else runs on this machine."""
    for _ in range(LOOKS):
        time.sleep(0.005)
        if LOAD.read_text().split()[3].startswith("1/"):
            return True
    return False


if LOAD.exists() and os.environ.get("GOMP_SPINCOUNT", SHORT) in (SHORT, LONG):  # inherited is what a parent decided
    os.environ["GOMP_SPINCOUNT"] = LONG if alone() else SHORT
