"""Configure evaluation; see `evaluate` and `train.unsure` in params.yaml."""

from stages.core.config.section import BatchSize, Section, Share

CALIBRATION_BINS = 15  # as in Guo et al. 2017


class Evaluate(Section):
    """Configure stage `evaluate`."""

    batch_size: BatchSize
    """The number of test images that the model classifies at once."""


class Unsure(Section):
    """Set targets on the validation split for the confidence below which a prediction is unsure."""

    risk: Share
    """The largest share of the sure predictions that may be wrong."""
    coverage: Share
    """The smallest share of all predictions that must be sure, even if the risk is then higher."""
