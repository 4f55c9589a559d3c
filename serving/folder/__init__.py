"""Predict the labels of all examples in a folder, as a table."""
