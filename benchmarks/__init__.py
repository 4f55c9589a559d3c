"""On an idle machine, as the stages find it there, whatever else starts at the same moment."""

import os

# Before torch is loaded. To stages/__init__.py it is a user's value, so that a measured process keeps it.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
