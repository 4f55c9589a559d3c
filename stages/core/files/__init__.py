"""Read and write the files that the stages exchange, safely."""
