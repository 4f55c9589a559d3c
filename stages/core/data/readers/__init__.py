"""Read data sets of files: find each example's file, label, split and group, and hand out the files' contents."""
