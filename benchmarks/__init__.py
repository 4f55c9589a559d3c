"""Measure the project, one benchmark per module: `python -m benchmarks.NAME` writes NAME.md and NAME.json here."""
