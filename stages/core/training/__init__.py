"""Train a network: the loop, its state, and what makes it fast, resumable and shared among processes."""
