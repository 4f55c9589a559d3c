"""Measure the project, with one module per benchmark: `python -m benchmarks.NAME` writes NAME.md and NAME.json here."""
