"""Build the networks that recipes name, and save and load them."""
