"""Predict the labels of all examples in a folder, and write them to a table."""
