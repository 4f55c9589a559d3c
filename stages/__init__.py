"""The stages of the pipeline, one module each: `python -m stages.train`."""

from stages.core import threads

threads.set_spin_count()  # It has to be set before any stage loads torch.
