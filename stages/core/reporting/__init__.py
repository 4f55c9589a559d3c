"""Present the results of a run."""
