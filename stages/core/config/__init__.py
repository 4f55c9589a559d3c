"""Read params.yaml, refuse what is wrong in it, explain why, and change it."""
