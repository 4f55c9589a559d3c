"""Test the readers of data sets of files."""
