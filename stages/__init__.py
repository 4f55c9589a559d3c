"""Run the stages of the pipeline, one module each: `python -m stages.train`."""

from stages.core.files import started  # noqa: F401  # It notes the time before a stage's imports, which take longest.
from stages.core.machine import interrupt, threads

interrupt.exit_on_interrupt_while_importing()
threads.set_spin_count()  # It must be set before any stage loads torch.
