"""The model in use: a service, and predictions for a folder. PyTorch is not needed for it."""

from stages.core import interrupt

interrupt.exit_on_interrupt_while_importing()
