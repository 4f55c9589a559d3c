"""Run the pipeline as Prefect flows, at once or on a schedule: `python -m flows.pipeline`."""

from stages.core.machine import interrupt

interrupt.exit_on_interrupt_while_importing()
