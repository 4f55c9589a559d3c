"""Read, validate and edit params.yaml, and explain what is wrong in it."""
