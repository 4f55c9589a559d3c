"""Run the stages of the pipeline, one module each: `python -m stages.train`."""

import time

from stages.core.machine import interrupt, threads

STARTED = time.time()  # Seconds since the epoch, read before a stage's imports, which take longest.

interrupt.exit_on_interrupt_while_importing()
threads.set_spin_count()  # It must be set before any stage loads torch.
