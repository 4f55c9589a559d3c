"""Know what one example is. No module outside of this package does; the networks know the meaning of a shape."""
