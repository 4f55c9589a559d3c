"""Compute a model's answers, measure them, and calibrate their confidence."""
