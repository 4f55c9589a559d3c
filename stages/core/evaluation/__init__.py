"""Compute a model's predictions, measure them, and calibrate their confidence."""
