"""The pipeline as Prefect flows, and what runs them by the clock: `python -m flows.pipeline`."""

from stages.core import interrupt

interrupt.exit_on_interrupt_while_importing()
