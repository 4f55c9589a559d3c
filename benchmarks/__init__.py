"""Measurements, one module each: `python -m benchmarks.NAME` writes benchmarks/NAME.md and benchmarks/NAME.json."""
