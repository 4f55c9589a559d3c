"""Train a network: the loop, its state, its checkpoints, and its distribution over processes."""
