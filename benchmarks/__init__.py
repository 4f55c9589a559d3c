"""On an idle machine, as the stages find it there, whatever else starts at the same moment."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # before torch is loaded; see stages/__init__.py
