"""Run the stages of the pipeline, one module each: `python -m stages.train`."""

import time

from stages.core.machine import interrupt, threads

STARTED = time.time()  # Seconds since the epoch; the imports of a stage, which take longest, come after it.

interrupt.exit_on_interrupt_while_importing()
threads.set_spin_count()  # It must be set before any stage loads torch.
