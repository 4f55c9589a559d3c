import os

# The threads of OpenMP (GNU's, in PyTorch) spin for milliseconds while they wait for each other, and two trainings on
# the same cores then stand nearly still. A short spin is as fast for one alone. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
