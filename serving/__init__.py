"""Use the model without PyTorch: as a service, or to predict the labels of a folder of images."""

from stages.core.machine import interrupt

interrupt.exit_on_interrupt_while_importing()
