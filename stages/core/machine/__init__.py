"""Adapt to the machine: its devices, memory, threads and signals."""
