"""Build the documentation: `make docs`."""
