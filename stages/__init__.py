"""The stages of the pipeline, one module each: `python -m stages.train`."""

import os
import signal
import sys

from stages.core import threads

# While Python locates the module of `python -m stages.STAGE`, argv[0] is "-m" and this package is imported. Importing
# the rest takes seconds, in which ctrl-C must not end in a traceback; afterwards `reported` handles it.
# The handler is Python's: polars, once imported, swallows a SIGINT that would have had its default action.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

threads.set_spin_count()  # It has to be set before any stage loads torch.
