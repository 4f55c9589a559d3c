"""Handle the data set: where it comes from, how it is read and divided, and how the splits are stored."""
