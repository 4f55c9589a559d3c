"""Download the data set, read it, divide it into splits and store them."""
