"""Show people what a run produced."""
