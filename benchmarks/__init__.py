import stages  # noqa: F401  # before torch: they wait for threads as the stages do
